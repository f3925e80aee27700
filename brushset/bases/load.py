"""From a base model on disk to its parts in memory. Safetensors only, nothing fetched, no code from the model.

A single-file checkpoint is read with SD 1.5's own configs, written by us: diffusers would ask the hub for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brushset.bases.configs import SCHEDULER_CONFIG, Architecture, write_configs
from brushset.bases.family import check_single_file
from brushset.bases.keep import make_once
from brushset.bases.tokenizer import tokenizer_dir, write_tokenizer
from brushset.errors import EnvironmentProblem
from brushset.paths import cache_dir
from brushset.records import BaseFile

ALL_PARTS = ("unet", "vae", "text_encoder", "tokenizer")


@dataclass(frozen=True)
class Components:
    """A base model's parts: diffusers' UNet2DConditionModel and AutoencoderKL, transformers' CLIPTextModel and
    CLIPTokenizer, all in evaluation mode without gradients. A part that was not asked for is None.
    """

    unet: Any = None
    vae: Any = None
    text_encoder: Any = None
    tokenizer: Any = None


def load_components(
    base: BaseFile, *, device: str = "cpu", dtype: Any = None, parts: Sequence[str] = ALL_PARTS
) -> Components:
    """Loads the named parts. `dtype` is a torch dtype, float32 where None.

    Raises:
        EnvironmentProblem: a part that does not load; the message names the model and the part.
    """
    import torch

    dtype = dtype or torch.float32
    loaded: dict[str, Any] = {}
    from_checkpoint = _checkpoint_parts(base, dtype, parts) if base.kind == "single-file" else {}
    for part in parts:
        try:
            loaded[part] = from_checkpoint.get(part) or _load_part(base, part, dtype)
        except (OSError, ValueError, RuntimeError) as error:
            raise EnvironmentProblem(
                f"{base.path}: its {part} does not load: {str(error).splitlines()[0]}", detail=str(error)
            ) from error
        if part != "tokenizer":
            loaded[part] = loaded[part].to(device).eval().requires_grad_(False)
    return Components(**loaded)


def load_pipeline(base: BaseFile, *, device: str = "cpu", dtype: Any = None) -> Any:
    """A base model as diffusers' StableDiffusionPipeline, with DPM-Solver++ 2M Karras and no safety checker."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    components = load_components(base, device=device, dtype=dtype)
    train = {key: SCHEDULER_CONFIG[key] for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}
    pipeline = StableDiffusionPipeline(
        unet=components.unet,
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        scheduler=DPMSolverMultistepScheduler(
            **train, algorithm_type="dpmsolver++", use_karras_sigmas=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Keeps diffusers' bars and remarks off the terminal meanwhile: only the front door prints. Errors still raise."""
    from diffusers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load_part(base: BaseFile, part: str, dtype: Any) -> Any:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = Path(base.path)
    if part == "tokenizer":
        return CLIPTokenizer.from_pretrained(next(tokenizer_dir(base).iterdir()), local_files_only=True)
    if part == "text_encoder":
        return CLIPTextModel.from_pretrained(folder / part, dtype=dtype, use_safetensors=True, local_files_only=True)
    kind = UNet2DConditionModel if part == "unet" else AutoencoderKL
    return kind.from_pretrained(folder / part, torch_dtype=dtype, use_safetensors=True, local_files_only=True)


def _checkpoint_parts(base: BaseFile, dtype: Any, parts: Sequence[str]) -> dict[str, Any]:
    """The parts of a single-file checkpoint; diffusers converts the old names."""
    from diffusers import StableDiffusionPipeline

    architecture = check_single_file(Path(base.path))
    unwanted: dict[str, None] = {part: None for part in ("unet", "vae", "text_encoder") if part not in parts}
    try:
        with quiet_diffusers():
            pipeline = StableDiffusionPipeline.from_single_file(
                base.path,
                config=str(_config_folder(architecture)),
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                safety_checker=None,
                feature_extractor=None,
                **unwanted,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"{base.path}: does not load: {str(error).splitlines()[0]}", detail=str(error)
        ) from error
    return {part: getattr(pipeline, part) for part in parts if part != "tokenizer"}


def _config_folder(architecture: Architecture) -> Path:
    """SD 1.5's configs and tokenizer as a folder without weights, in the cache."""

    def write(folder: Path) -> None:
        write_configs(folder, architecture)
        write_tokenizer(folder / "tokenizer")

    return make_once(cache_dir() / "configs" / f"{architecture.name}-1", write)
