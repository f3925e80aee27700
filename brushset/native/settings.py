"""What do config/dataset.toml and config/training.toml ask of the native engine?

Keys, defaults and precedence are sd-scripts' own (subset > dataset > general > training.toml), so one pair of files
means the same to both engines. Every key is honoured, or asks for nothing (brushset.native.keys), or is refused by name:
nothing that was asked for is ignored in silence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from brushset.errors import UsageError
from brushset.files import read_toml
from brushset.native.keys import asks_nothing
from brushset.native.levels import flatten, merge_levels

_FOREIGN_NAMES = {"train_batch_size": "batch_size", "dataset_repeats": "num_repeats"}
"""Dataset settings as training.toml calls them."""


class _Keys(BaseModel):
    """Immutable, strict about types, closed to other keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_OPTIMIZERS = {"adamw": "AdamW", "adamw8bit": "AdamW8bit", "prodigy": "Prodigy", "lion": "Lion", "": "AdamW"}


def _spelled(value: object) -> object:
    """An optimizer's name as it is written here; sd-scripts takes any case, and AdamW for an empty one."""
    return _OPTIMIZERS.get(value.lower(), value) if isinstance(value, str) else value


def _square(value: object) -> object:
    """A resolution of `512`, `[512, 512]` or `"512,512"` as one number; others are left for the type to refuse."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list):
        return parts
    sides = {int(part) for part in parts if str(part).strip().isdigit()}
    return sides.pop() if len(sides) == 1 else value


def _multiple_of_64(value: int) -> int:
    if value % 64:
        raise ValueError(f"must be a multiple of 64, as sd-scripts has it, not {value}")
    return value


class DatasetKeys(_Keys):
    """One dataset with one subset."""

    image_dir: str
    resolution: Annotated[int, BeforeValidator(_square), Field(ge=64, multiple_of=8)]
    caption_extension: str = ".caption"
    class_tokens: str | None = Field(None, description="caption of images that have none")
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_separator: str = Field(",", min_length=1)
    shuffle_caption: bool = False
    keep_tokens: int = Field(0, ge=0)
    keep_tokens_separator: str = ""
    secondary_separator: str | None = None
    enable_wildcard: bool = False
    caption_dropout_rate: float = Field(0.0, ge=0, le=1)
    caption_dropout_every_n_epochs: int = Field(0, ge=0)
    caption_tag_dropout_rate: float = Field(0.0, ge=0, le=1)
    token_warmup_min: int = Field(1, ge=0)
    token_warmup_step: float = Field(0, ge=0)
    num_repeats: int = Field(1, ge=1)
    batch_size: int = Field(1, ge=1)
    flip_aug: bool = False
    enable_bucket: bool = False
    min_bucket_reso: int = Field(256, ge=64)
    max_bucket_reso: int = Field(1024, ge=64)
    bucket_reso_steps: Annotated[int, Field(64, ge=64), AfterValidator(_multiple_of_64)] = 64
    bucket_no_upscale: bool = False


class TrainingKeys(_Keys):
    """The recipe."""

    seed: int = Field(ge=0)
    output_name: str = Field(min_length=1)
    network_module: Literal["networks.lora"]
    network_dim: int = Field(4, ge=1)
    network_alpha: float = 1.0
    network_train_unet_only: bool = False
    learning_rate: float = Field(2e-6, ge=0)
    unet_lr: float | None = Field(None, ge=0)
    text_encoder_lr: float | list[float] | None = None
    optimizer_type: Annotated[Literal["AdamW", "AdamW8bit", "Prodigy", "Lion"], BeforeValidator(_spelled)] = "AdamW"
    optimizer_args: list[str] = []
    max_grad_norm: float = Field(1.0, ge=0)
    lr_scheduler: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt",
        "cosine_with_min_lr", "warmup_stable_decay",
    ] = "constant"  # fmt: skip
    lr_warmup_steps: int | float = Field(0, ge=0)
    lr_decay_steps: int | float = Field(0, ge=0)
    lr_scheduler_num_cycles: int = Field(1, ge=1)
    lr_scheduler_power: float = 1.0
    lr_scheduler_timescale: int | None = Field(None, ge=1)
    lr_scheduler_min_lr_ratio: float | None = Field(None, ge=0, le=1)
    lr_scheduler_args: list[str] = []
    max_train_steps: int = Field(1600, ge=1)
    max_train_epochs: int | None = Field(None, ge=1)
    save_every_n_epochs: int | None = Field(None, ge=1)
    save_precision: Literal["float", "fp16", "bf16"] | None = None
    save_model_as: Literal["safetensors"] = "safetensors"
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    no_half_vae: bool = False
    sdpa: bool = False
    xformers: bool = False
    gradient_checkpointing: bool = False
    gradient_accumulation_steps: int = Field(1, ge=1)
    cache_latents: bool = False
    vae_batch_size: int = Field(1, ge=1)
    max_token_length: Literal[75, 150, 225] | None = None
    clip_skip: int | None = Field(None, ge=1, le=12)
    min_snr_gamma: float | None = Field(None, ge=0)
    debiased_estimation_loss: bool = False
    zero_terminal_snr: bool = False
    noise_offset: float | None = Field(None, ge=0)
    noise_offset_random_strength: bool = False
    multires_noise_iterations: int | None = Field(None, ge=0)
    multires_noise_discount: float = 0.3
    ip_noise_gamma: float | None = Field(None, ge=0)
    ip_noise_gamma_random_strength: bool = False
    min_timestep: int | None = Field(None, ge=0, lt=1000)
    max_timestep: int | None = Field(None, ge=1, le=1000)
    loss_type: Literal["l1", "l2", "huber", "smooth_l1"] = "l2"
    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    huber_c: float = Field(0.1, gt=0)
    huber_scale: float = Field(1.0, gt=0)
    scale_weight_norms: float | None = Field(None, ge=0)
    validate_every_n_epochs: int | None = Field(None, ge=1)
    max_validation_steps: int | None = Field(None, ge=1)
    validation_seed: int | None = Field(None, ge=0)
    logging_dir: str | None = None
    log_with: Literal["tensorboard"] = "tensorboard"
    log_prefix: str = ""
    log_tracker_name: str = "network_train"
    training_comment: str | None = None
    metadata_title: str | None = None
    metadata_author: str | None = None
    metadata_description: str | None = None
    metadata_license: str | None = None
    metadata_tags: str | None = None
    metadata_usage_hint: str | None = None
    metadata_trigger_phrase: str | None = None

    @property
    def unet_rate(self) -> float:
        """The UNet's learning rate; 0 where it is not trained."""
        return self.learning_rate if self.unet_lr is None else self.unet_lr

    @property
    def timesteps(self) -> tuple[int, int]:
        """The first timestep that is trained, and the one behind the last."""
        return self.min_timestep or 0, self.max_timestep or 1000

    @property
    def text_encoder_rate(self) -> float:
        """The text encoder's learning rate; of a list, the first, as SD 1.5 has one encoder."""
        rates = self.text_encoder_lr if isinstance(self.text_encoder_lr, list) else [self.text_encoder_lr]
        first = rates[0] if rates else None
        return self.learning_rate if first is None else first


@dataclass(frozen=True)
class NativeSettings:
    """The pair, typed. Relative paths in it are relative to `root`, the run folder. `heldout` is the dataset that is split
    off whole, where there is one: validated on and never trained on.
    """

    root: Path
    training: TrainingKeys
    dataset: DatasetKeys
    heldout: DatasetKeys | None = None

    @property
    def image_dir(self) -> Path:
        return self.root / self.dataset.image_dir


def read_settings(dataset_toml: Path, training_toml: Path, *, root: Path) -> NativeSettings:
    """Reads the pair.

    Raises:
        UsageError: keys that native does not honour or values that it cannot take, a line each, naming file and key.
    """
    given = {key: value for key, value in flatten(read_toml(training_toml)).items() if not asks_nothing(key, value)}
    names = {key: _FOREIGN_NAMES.get(key, key) for key in given}
    below = {names[key]: value for key, value in given.items() if names[key] in DatasetKeys.model_fields}
    training = {key: value for key, value in given.items() if names[key] not in DatasetKeys.model_fields}
    levels = merge_levels(read_toml(dataset_toml), dataset_toml)
    findings = list(levels.findings)
    recipe = _validate(TrainingKeys, training, lambda _: training_toml, findings)
    found: list[DatasetKeys | None] = []
    for own in (levels.trained, levels.heldout):
        ours = {key: value for key, value in (own or {}).items() if not asks_nothing(key, value)}
        if own is not None and own is levels.heldout:
            ours = {key: value for key, value in ours.items() if key not in _OF_A_SPLIT}
        origin = {**dict.fromkeys(below, training_toml), **dict.fromkeys(ours, dataset_toml)}
        path_of = functools.partial(_path_of, origin, dataset_toml)
        found.append(None if own is None else _validate(DatasetKeys, {**below, **ours}, path_of, findings))
    if recipe is not None:
        findings += [f"{training_toml}: {finding}" for finding in _impossible(recipe)]
    if findings or recipe is None or found[0] is None:
        raise UsageError.of_many(findings)
    return NativeSettings(root, recipe, found[0], found[1])


_OF_A_SPLIT = ("validation_split", "validation_seed")
"""What makes a dataset one to validate on; the seed shuffles a set before it is divided, and this one is not."""


def _path_of(origin: Mapping[str, Path], default: Path, key: str) -> Path:
    return origin.get(key, default)


_Model = TypeVar("_Model", bound=_Keys)


def _validate(
    model: type[_Model], values: Mapping[str, Any], path_of: Callable[[str], Path], findings: list[str]
) -> _Model | None:
    """The typed values; or None, with what is wrong appended to `findings`."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        for problem in error.errors():
            key = str(problem["loc"][0]) if problem["loc"] else ""
            findings.append(_explain(path_of(key), key, problem))
        return None


def _explain(path: Path, key: str, problem: Any) -> str:
    """One line of pydantic's report, with file, key, value and fix."""
    if problem["type"] == "extra_forbidden":
        return (
            f'{path}: the native engine does not honour key "{key}"; remove it, or train with [train] engine = "kohya"'
        )
    if problem["type"] == "missing":
        return f'{path}: key "{key}" is missing'
    return f"{path}: {key} = {problem['input']!r}: {problem['msg']}"


def _impossible(training: TrainingKeys) -> list[str]:
    """Combinations that would fail late."""
    found = []
    if training.lr_scheduler == "constant" and training.lr_warmup_steps:
        found.append(
            f'lr_scheduler = "constant" takes no lr_warmup_steps = {training.lr_warmup_steps}; '
            'set 0, or "constant_with_warmup"'
        )
    if training.sdpa and training.xformers:
        found.append("sdpa and xformers are both true; choose one")
    if isinstance(training.text_encoder_lr, list) and len(training.text_encoder_lr) > 1:
        found.append(f"text_encoder_lr = {training.text_encoder_lr}: SD 1.5 has one text encoder; give one rate")
    if training.huber_c > 1 and training.loss_type in {"huber", "smooth_l1"} and training.huber_schedule != "constant":
        found.append(f"huber_c = {training.huber_c}: the schedules end at it and begin at 1; give at most 1")
    least, most = training.timesteps
    if least >= most:
        found.append(f"min_timestep = {least} is not below max_timestep = {most}")
    if training.network_train_unet_only and training.unet_rate == 0:
        found.append("unet_lr = 0 with network_train_unet_only = true leaves nothing to train")
    return found
