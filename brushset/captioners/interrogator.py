"""clip-interrogator 0.6.0 (pharmapsychotic, MIT): BLIP says what is there, CLIP ranks phrases on how it looks.

BLIP is ours (brushset.captioners.blip, in batches); the ranking is clip-interrogator's, with CLIP loaded by us so that
an absent model is one line with a fix. Its phrase tables (106 000 phrases) it would download from the branch `main`,
without a timeout and into the final name: we fetch them at a pinned commit by way of the hub's cache, not at all where
HF_HUB_OFFLINE is set. Tables that are not to be had are embedded here, once: minutes on a GPU, hours on a CPU.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brushset.captioners.blip import BlipCaptioner, read_images
from brushset.captioners.weights import Weights
from brushset.errors import EnvironmentProblem
from brushset.files import link_or_copy, sha256_file
from brushset.hub import NotToBeHad
from brushset.paths import cache_dir
from brushset.protocols import Describe, Emit, Subject
from brushset.spec import CaptionSection

_TABLES = "pharmapsychotic/ci-preprocess"


class InterrogatorCaptioner:
    """`mode` "caption" is BLIP alone; "fast" adds the best-ranked phrases of all kinds; "classic" one of each kind."""

    name = "interrogator"

    def __init__(self, section: CaptionSection) -> None:
        self._section = section
        self._blip = BlipCaptioner(section)
        self.settings = ", ".join(filter(None, (section.mode, self._clip_named(), self._blip.settings)))
        self.batch_size = section.batch_size

    def weights(self) -> str:
        """BLIP's, and CLIP's where it takes part."""
        if self._section.mode == "caption":
            return self._blip.weights()
        return f"{self._blip.weights()}, {_clip_identity(self._section.clip_model)}"

    def load(self, emit: Emit) -> Describe:
        """A sentence and phrases an image, comma-separated.

        Raises:
            EnvironmentProblem: BLIP or CLIP is not in the cache and cannot be fetched.
        """
        say = self._blip.load(emit)
        if self._section.mode == "caption":
            return say
        with _quiet():
            interrogator = _interrogator(self._section.clip_model, emit)
        rank = getattr(interrogator, f"interrogate_{self._section.mode}")

        def describe(subjects: Sequence[Subject]) -> list[str]:
            sentences = say(subjects)
            with _quiet():
                # A blank, not an empty caption: for that it would call a BLIP of its own.
                pairs = zip(read_images(subjects), sentences, strict=True)
                return [rank(image, caption=sentence or " ").strip(" ,") for image, sentence in pairs]

        return describe

    def _clip_named(self) -> str:
        return "" if self._section.mode == "caption" else self._section.clip_model


@contextlib.contextmanager
def _quiet() -> Any:
    """It asks for CUDA autocast by a deprecated name, and says so for every phrase on a machine without CUDA."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _interrogator(clip_model: str, emit: Emit) -> Any:
    import torch
    from clip_interrogator import Config, Interrogator

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = _load_clip(clip_model, device)
    tables = cache_dir() / "clip-interrogator"
    _fetch_tables(_table_name(clip_model), tables, emit)
    config = Config(
        caption_model_name=None,
        clip_model_name=_table_name(clip_model),
        cache_path=str(tables),
        download_cache=False,
        device=device,
        quiet=True,
    )
    config.clip_model, config.clip_preprocess = model, preprocess
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        interrogator = Interrogator(config)
    for line in said.getvalue().splitlines():
        emit("warning", text=f"clip-interrogator: {line}")
    return interrogator


def _fetch_tables(name: str, folder: Path, emit: Emit) -> None:
    """Puts the phrase tables of a CLIP where clip-interrogator looks for them; some CLIPs have none ready-made."""
    prefix = _table_prefix(name)
    if list(folder.glob(f"{prefix}_*.safetensors")):
        return
    try:
        found = _table_weights(prefix).folder()
    except NotToBeHad as error:
        emit("note", text=f"clip-interrogator: no ready-made phrase tables ({str(error).splitlines()[0]})")
        found = None
    tables = sorted(found.glob(f"{prefix}_*.safetensors")) if found else []
    for table in tables:
        link_or_copy(table.resolve(), folder / table.name)
    if not tables:
        emit("note", text="clip-interrogator: phrase tables are made here, once; on a CPU that takes hours")


def ranking_weights(section: CaptionSection) -> list[Weights]:
    """What is read to rank phrases: CLIP, and the ready-made tables; neither where CLIP is a file of the user's."""
    import open_clip

    architecture, _, weights = section.clip_model.partition("/")
    tag = open_clip.get_pretrained_cfg(architecture, weights)
    if not tag.get("hf_hub"):
        return []
    return [_clip_repository(weights, tag), _table_weights(_table_prefix(_table_name(section.clip_model)))]


def _table_weights(prefix: str) -> Weights:
    return Weights(_TABLES, None, (f"{prefix}_*.safetensors",), ())


def _table_prefix(name: str) -> str:
    return name.replace("/", "_").replace("@", "_")


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
        raise _not_to_be_had(clip_model, error) from error
    return model.eval(), preprocess


def _clip_weights(weights: str, tag: Mapping[str, Any]) -> Path:
    """The .safetensors file of a known tag, or the one that is named; open_clip itself would fetch a pickle too."""
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    path = _clip_repository(weights, tag).folder() / HF_SAFE_WEIGHTS_NAME if tag else Path(weights)
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"{path} is no .safetensors file and no known tag")
    return path


def _clip_repository(weights: str, tag: Mapping[str, Any]) -> Weights:
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME

    if not tag.get("hf_hub"):
        raise ValueError(f'"{weights}" is not on the hub')
    return Weights(str(tag["hf_hub"]).strip("/"), None, (HF_SAFE_WEIGHTS_NAME,), ())


def _clip_identity(clip_model: str) -> str:
    import open_clip

    architecture, _, weights = clip_model.partition("/")
    tag = open_clip.get_pretrained_cfg(architecture, weights)
    try:
        if tag:
            return _clip_repository(weights, tag).identity()
        return f"{architecture}@{sha256_file(Path(weights))[:16]}"
    except (NotToBeHad, OSError, ValueError) as error:
        raise _not_to_be_had(clip_model, error) from error


def _table_name(clip_model: str) -> str:
    """The name that phrase tables are cached under, of exactly two parts; a file of weights is named by its content."""
    architecture, _, weights = clip_model.partition("/")
    return f"{architecture}/{sha256_file(Path(weights))[:12] if Path(weights).is_file() else weights}"


def _not_to_be_had(clip_model: str, error: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f'[caption] clip_model = "{clip_model}": no known model in safetensors, not in the cache of HF models, and '
        f"not to be fetched now; fix: connect to huggingface.co once, or --set caption.mode=caption, or "
        f"--set caption.captioner=trigger-only",
        detail=str(error),
    )
