"""clip-interrogator 0.6.0 (pharmapsychotic, MIT): BLIP says what is there, CLIP ranks phrases on how it looks.

BLIP is ours (brushset.captioners.blip, in batches); the ranking is clip-interrogator's, with CLIP loaded by us so that
an absent model is one line with a fix. Its phrase tables (106 000 phrases) are fetched ready-made where there is a
network; else they are embedded here, once, which takes minutes on a GPU and hours on a CPU.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brushset.captioners.blip import BlipCaptioner, read_pixels
from brushset.errors import EnvironmentProblem
from brushset.files import sha256_file
from brushset.hub import NotToBeHad, fetch_repository
from brushset.paths import cache_dir
from brushset.protocols import Emit
from brushset.spec import CaptionSection


class InterrogatorCaptioner:
    """`mode` "caption" is BLIP alone; "fast" adds the best-ranked phrases of all kinds; "classic" one of each kind."""

    name = "interrogator"

    def __init__(self, section: CaptionSection) -> None:
        self._section = section
        self._blip = BlipCaptioner(section)
        self.settings = f"{section.mode}, {section.clip_model}, {self._blip.settings}"

    def describe(self, images: Sequence[Path], emit: Emit) -> list[str]:
        """A sentence and phrases an image, comma-separated.

        Raises:
            EnvironmentProblem: BLIP or CLIP is not in the cache and cannot be fetched.
        """
        sentences = self._blip.describe(images, emit)
        if self._section.mode == "caption" or not images:
            return sentences
        with warnings.catch_warnings():
            # It asks for CUDA autocast by a deprecated name, and says so for every phrase on a machine without CUDA.
            warnings.simplefilter("ignore")
            interrogator = _interrogator(self._section.clip_model, emit)
            rank = getattr(interrogator, f"interrogate_{self._section.mode}")
            captions = []
            for path, sentence in zip(images, sentences, strict=True):
                # A blank, not an empty caption: for that it would call a BLIP of its own.
                captions.append(rank(read_pixels(path), caption=sentence or " ").strip(" ,"))
                emit("progress", what="images interrogated", done=len(captions), total=len(images))
        return captions


def _interrogator(clip_model: str, emit: Emit) -> Any:
    import torch
    from clip_interrogator import Config, Interrogator
    from huggingface_hub.constants import HF_HUB_OFFLINE

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = _load_clip(clip_model, device)
    config = Config(
        caption_model_name=None,
        clip_model_name=_table_name(clip_model),
        cache_path=str(cache_dir() / "clip-interrogator"),
        download_cache=not HF_HUB_OFFLINE,
        device=device,
        quiet=True,
    )
    config.clip_model, config.clip_preprocess = model, preprocess
    emit("note", text="clip-interrogator: phrase tables are read, fetched or made; made on a CPU they take hours")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        interrogator = Interrogator(config)
    for line in said.getvalue().splitlines():
        emit("warning", text=f"clip-interrogator: {line}")
    return interrogator


def _load_clip(clip_model: str, device: str) -> tuple[Any, Any]:
    """CLIP of open_clip and its preprocessing, by "architecture/tag" or "architecture/path of a .safetensors file"."""
    import open_clip

    architecture, _, weights = clip_model.partition("/")
    tag = open_clip.get_pretrained_cfg(architecture, weights)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(
            architecture,
            pretrained=str(_clip_weights(weights, tag)),
            precision="fp16" if device == "cuda" else "fp32",
            device=device,
            # OpenAI's weights were trained with it; open_clip only warns where the architecture's name does not say so.
            force_quick_gelu=bool(tag.get("quick_gelu")),
            image_mean=tag.get("mean"),
            image_std=tag.get("std"),
            image_interpolation=tag.get("interpolation"),
            image_resize_mode=tag.get("resize_mode"),
        )
    except (NotToBeHad, OSError, ValueError, RuntimeError) as error:
        raise EnvironmentProblem(
            f'[caption] clip_model = "{clip_model}": no known model in safetensors, not in the cache of HF models, and '
            f"not to be fetched now; fix: connect to huggingface.co once, or --set caption.mode=caption, or "
            f"--set caption.captioner=trigger-only",
            detail=str(error),
        ) from error
    return model.eval(), preprocess


def _clip_weights(weights: str, tag: Mapping[str, Any]) -> Path:
    """The .safetensors file of a known tag, or the one that is named; open_clip itself would fetch a pickle too."""
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    if not tag:
        path = Path(weights)
    elif not tag.get("hf_hub"):
        raise ValueError(f'"{weights}" is not on the hub')
    else:
        path = fetch_repository(str(tag["hf_hub"]).strip("/"), (HF_SAFE_WEIGHTS_NAME,)) / HF_SAFE_WEIGHTS_NAME
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"{path} is no .safetensors file and no known tag")
    return path


def _table_name(clip_model: str) -> str:
    """The name that phrase tables are cached under, of exactly two parts; a file of weights is named by its content."""
    architecture, _, weights = clip_model.partition("/")
    return f"{architecture}/{sha256_file(Path(weights))[:12] if Path(weights).is_file() else weights}"
