"""The networks that metrics look through, as published: CLIP, CSD, DINOv2, Inception; and dHash, which is none.

Each is found first (its file, its hash) and loaded when the first image comes that was not seen before. Weights are
safetensors, or pickles that torch's restricted unpickler has read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.errors import VerificationFailed
from brushset.files import read_json
from eval.csd import build_csd, read_csd_state
from eval.embedder import Embedder, Identity, Towers
from eval.kept import KeptVectors
from eval.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from eval.weights import CLIP, CSD, DINOV2, INCEPTION, find_weights

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_CONTEXT_TOKENS = 77


def load_clip(source: str, device: str, kept: KeptVectors | None) -> Embedder:
    """CLIP's two towers, from transformers' form. Raises as `find_weights` does."""
    found = find_weights(source, CLIP)
    preprocess = _read_preprocess(found.folder)

    def load() -> Towers:
        from transformers import CLIPModel, CLIPTokenizerFast

        tokenizer = CLIPTokenizerFast.from_pretrained(found.folder, local_files_only=True)
        model = CLIPModel.from_pretrained(found.folder, local_files_only=True, use_safetensors=True)

        def tokenize(texts: Sequence[str]) -> dict[str, Any]:
            settings = {"padding": True, "truncation": True, "max_length": _CONTEXT_TOKENS, "return_tensors": "pt"}
            return dict(tokenizer(list(texts), **settings))

        return clip_towers(model.float().eval().to(device), preprocess, tokenize, device)

    return Embedder(_identity(source, found.sha256, preprocess.description), load, kept=kept)


def load_csd(source: str, device: str, kept: KeptVectors | None) -> Embedder:
    """CSD's style head. Raises as `find_weights` does."""
    found, preprocess = find_weights(source, CSD), Preprocess(224, 224)

    def load() -> Towers:
        model = build_csd(read_csd_state(found.file), str(found.file)).to(device)
        return vision_towers(lambda pixels: model(pixel_values=pixels).image_embeds, preprocess, device)

    return Embedder(_identity(source, found.sha256, preprocess.description), load, kept=kept)


def load_dinov2(source: str, device: str, kept: KeptVectors | None) -> Embedder:
    """DINOv2's class token after its last norm (Oquab et al. 2023, arXiv 2304.07193). Raises as `find_weights` does."""
    found, preprocess = find_weights(source, DINOV2), Preprocess(256, 224, IMAGENET_MEAN, IMAGENET_STD)

    def load() -> Towers:
        from transformers import Dinov2Model

        model = Dinov2Model.from_pretrained(found.folder, local_files_only=True, use_safetensors=True)
        return dinov2_towers(model.float().eval().to(device), preprocess, device)

    return Embedder(_identity(source, found.sha256, preprocess.description), load, kept=kept)


def load_inception(source: str, device: str, kept: KeptVectors | None) -> Embedder:
    """torch-fidelity's Inception v3 as torchmetrics runs it: 2048 features, not of unit length."""
    found = find_weights(source, INCEPTION)

    def load() -> Towers:
        from torchmetrics.image.fid import NoTrainInceptionV3

        require_tensors_only(found.file)
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(found.file)).eval().to(device)
        return uint8_towers(network, device)

    return Embedder(_identity(source, found.sha256, "torch-fidelity's resize to 299"), load, unit=False, kept=kept)


def load_dhash() -> Embedder:
    """The 64-bit difference hash of an image (imagehash), as rows of 0 and 1."""
    import imagehash
    import numpy as np

    def rows(images: Sequence[Image]) -> np.ndarray:
        return np.stack([imagehash.dhash(image, 8).hash.reshape(-1) for image in images]).astype(np.float32)

    version = imagehash.__version__
    return Embedder(
        Identity(f"dHash, 64 bits (imagehash {version})", "", meaningful=True), lambda: Towers(rows), unit=False
    )


def clip_towers(
    model: Any, preprocess: Preprocess, tokenize: Callable[[Sequence[str]], dict[str, Any]], device: str
) -> Towers:
    """Both towers of a transformers CLIPModel, projections and all."""
    import torch

    def texts(batch: Sequence[str]) -> np.ndarray:
        tokens = tokenize(batch)
        with torch.inference_mode():
            found = model.get_text_features(tokens["input_ids"].to(device), tokens["attention_mask"].to(device))
        return found.float().cpu().numpy()

    images = vision_towers(lambda pixels: model.get_image_features(pixel_values=pixels), preprocess, device).images
    return Towers(images, texts)


def dinov2_towers(model: Any, preprocess: Preprocess, device: str) -> Towers:
    """The class token of a transformers Dinov2Model."""
    return vision_towers(lambda pixels: model(pixel_values=pixels).last_hidden_state[:, 0], preprocess, device)


def vision_towers(forward: Callable[[Any], Any], preprocess: Preprocess, device: str) -> Towers:
    """Any tower that takes normalised pixels [N, 3, H, W]."""
    import torch

    def images(batch: Sequence[Image]) -> np.ndarray:
        with torch.inference_mode():
            found = forward(torch.from_numpy(preprocess(batch)).to(device))
        return found.float().cpu().numpy()

    return Towers(images)


def uint8_towers(network: Any, device: str) -> Towers:
    """A network that takes uint8 [N, 3, H, W]. Images of one call share one size."""
    import numpy as np
    import torch

    def images(batch: Sequence[Image]) -> np.ndarray:
        pixels = np.stack([np.array(image.convert("RGB")) for image in batch])
        with torch.inference_mode():
            found = network(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device))
        return found.float().cpu().numpy()

    return Towers(images)


def require_tensors_only(file: Path) -> None:
    """Reads a pickle with torch's restricted unpickler first: torch-fidelity itself would run what is in it.

    Raises:
        VerificationFailed: it holds more than tensors, or is none.
    """
    import pickle

    import torch

    try:
        torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise VerificationFailed(f"{file}: not a file of tensors alone; fix: fetch it again") from error


def _identity(source: str, sha256: str, preprocessing: str) -> Identity:
    name = Path(source).name if Path(source).expanduser().exists() else source
    return Identity(f"{name} (weights {sha256[:12]}; {preprocessing})", sha256, meaningful=True)


def _read_preprocess(folder: Path) -> Preprocess:
    """As the repository states it: 224 pixels and CLIP's means, where it states nothing."""
    stated = read_json(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
    size, crop = stated.get("size", 224), stated.get("crop_size", 224)
    resize_px = int(size["shortest_edge"] if isinstance(size, dict) else size)
    crop_px = int(crop["height"] if isinstance(crop, dict) else crop)
    mean, std = tuple(stated.get("image_mean", CLIP_MEAN)), tuple(stated.get("image_std", CLIP_STD))
    return Preprocess(resize_px, crop_px, mean, std)
