"""Which family a base model belongs to, by its header alone: SD 1.5 is trained, everything else refused by name.

Names and shapes say it: SD 1.x conditions its UNet on 768 numbers a token, SD 2 on 1024, SDXL on 2048; Flux and SD 3
have no UNet. Reading a header takes milliseconds, loading the wrong 7 GB takes minutes and fails less clearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from brushset.bases.configs import ARCHITECTURES, SD15, Architecture
from brushset.bases.header import Header, read_header
from brushset.errors import UsageError
from brushset.files import read_json

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_FIX = "fix: --base-model with an SD 1.5 checkpoint, folder or HF id"
_LDM = "model.diffusion_model."
_FOREIGN_KEYS = (  # how a key starts → what the file is; the first that matches wins
    ("conditioner.embedders.1.", "an SDXL checkpoint"),
    ("unet.", "a part in diffusers' form, not a checkpoint"),
    ("double_blocks.", "a Flux model"),
    (f"{_LDM}double_blocks.", "a Flux checkpoint"),
    (f"{_LDM}joint_blocks.", "an SD 3 checkpoint"),
    ("joint_blocks.", "an SD 3 model"),
    ("cond_stage_model.model.", "an SD 2 checkpoint"),
    ("down_blocks.", "a UNet alone in diffusers' form; give the model's folder"),
)
_FOREIGN_WIDTHS = {1024: "an SD 2 model", 1280: "an SDXL refiner", 2048: "an SDXL model"}
_SINGLE_FILE_PARTS = {
    f"{_LDM}input_blocks.0.0.weight": "UNet",
    "first_stage_model.decoder.conv_out.weight": "VAE",
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": "text encoder",
}
_OLD_TEXT_KEY = "cond_stage_model.transformer.embeddings.token_embedding.weight"


def check_single_file(path: Path) -> Architecture:
    """The architecture of a checkpoint file.

    Raises:
        UsageError: not SD 1.5 with all three parts; the message says what it is instead.
    """
    header = read_header(path)
    if path.suffix != ".safetensors":  # sd-scripts goes by the name, and unpickles every other file
        raise UsageError(f"{path}: holds safetensors under another name; fix: rename it to {path.stem}.safetensors")
    if any("lora" in name for name in header.tensors):  # lora_unet_…, ….lora.up.weight, ….lora_A.weight
        raise _refused(path, "a LoRA, not a base model")
    for start, what in _FOREIGN_KEYS:
        if any(name.startswith(start) for name in header.tensors):
            raise _refused(path, what)
    _refuse_width(path, header, f"{_LDM}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    missing = [
        what
        for name, what in _SINGLE_FILE_PARTS.items()
        if name not in header.tensors and not (what == "text encoder" and _OLD_TEXT_KEY in header.tensors)
    ]
    if missing:
        raise _refused(path, f"no Stable Diffusion checkpoint: its {', '.join(missing)} is missing")
    return _architecture(path, header.shape(f"{_LDM}input_blocks.0.0.weight"))


def check_folder(folder: Path) -> Architecture:
    """The architecture of a diffusers folder that holds safetensors.

    Raises:
        UsageError: not SD 1.5; the message says what it is instead, or which part is missing.
    """
    refuse_pipeline(folder)
    unet = read_header(part_file(folder, "unet"))
    for part in ("vae", "text_encoder"):
        read_header(part_file(folder, part))
    _refuse_width(folder, unet, "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight")
    return _architecture(folder, unet.shape("conv_in.weight"))


def refuse_pipeline(folder: Path) -> None:
    """Raises UsageError where model_index.json and the configs already say that a folder is not SD 1.5."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise _refused(folder, "no diffusers folder: model_index.json is missing")
    kind = read_json(index).get("_class_name", "")
    if kind not in ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"):
        raise _refused(folder, f"{kind or 'of no named kind'} in model_index.json")
    config = folder / "unet" / "config.json"
    width = read_json(config).get("cross_attention_dim") if config.is_file() else None
    if width in _FOREIGN_WIDTHS:
        raise _refused(folder, _FOREIGN_WIDTHS[width])


def part_file(folder: Path, part: str) -> Path:
    """The weights of one part: `<part>/<name>.safetensors`.

    Raises:
        UsageError: they are missing, or there only as a pickle or in a variant's name.
    """
    path = folder / part / f"{PARTS[part]}.safetensors"
    if not path.is_file():
        others = sorted(file.name for file in (folder / part).glob("*") if file.suffix in (".bin", ".safetensors"))
        found = f" (found {', '.join(others)})" if others else ""
        raise _refused(folder, f"without {part}/{path.name}{found}")
    return path


def weight_files(folder: Path) -> Sequence[Path]:
    """The three weight files of a diffusers folder."""
    return [part_file(folder, part) for part in PARTS]


def _refuse_width(path: Path, header: Header, key: str) -> None:
    shape = header.shape(key)
    if shape is not None and len(shape) == 2 and shape[1] in _FOREIGN_WIDTHS:
        raise _refused(path, _FOREIGN_WIDTHS[shape[1]])


def _architecture(path: Path, shape: tuple[int, ...] | None) -> Architecture:
    """By the first convolution, [width, 4, 3, 3]."""
    if shape is None or len(shape) != 4:
        raise _refused(path, "no SD 1.5 UNet: its first convolution is missing")
    if shape[1] != SD15_LATENT_CHANNELS:
        raise _refused(path, f"a UNet of {shape[1]} input channels, for inpainting or editing")
    for known in ARCHITECTURES.values():
        if shape[0] == known.unet_widths[0]:
            return known
    raise _refused(path, f"a UNet {shape[0]} channels wide where SD 1.5's is {SD15.unet_widths[0]}")


SD15_LATENT_CHANNELS = 4


def _refused(path: Path, what: str) -> UsageError:
    return UsageError(f"{path}: {what}; {_FIX}")
