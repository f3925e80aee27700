"""What do config/dataset.toml and config/training.toml ask of the native engine?

Keys, defaults and precedence are sd-scripts' own (subset > dataset > general > training.toml), so one pair of files
means the same to both engines. Every key is honoured, or listed below as having no meaning here, or refused by name:
nothing that was asked for is ignored in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from brushset.errors import UsageError
from brushset.files import read_toml

MEANINGLESS: Mapping[str, str] = {
    "pretrained_model_name_or_path": "the base that the run resolved and hashed is trained",
    "tokenizer_cache_dir": "the tokenizer comes with the base",
    "dataset_config": "both files of the pair are given",
    "output_dir": "files go to the folder of this attempt",
    "console_log_simple": "nothing is printed",
    "console_log_level": "nothing is printed",
    "max_data_loader_n_workers": "latents lie in memory: there are no loader processes",
    "persistent_data_loader_workers": "latents lie in memory: there are no loader processes",
    "lowram": "the models are loaded straight to the device",
    "highvram": "the models are loaded straight to the device",
    "cache_info": "sizes and captions are read once a run",
}
"""Keys of either file that cannot change what native trains, and why."""

_FOREIGN_NAMES = {"train_batch_size": "batch_size", "dataset_repeats": "num_repeats"}
"""Dataset settings as training.toml calls them."""


class _Keys(BaseModel):
    """Immutable, strict about types, closed to other keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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
    caption_dropout_rate: float = Field(0.0, ge=0, le=1)
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
    optimizer_type: Literal["AdamW", "AdamW8bit", "Prodigy", "Lion"] = "AdamW"
    optimizer_args: list[str] = []
    max_grad_norm: float = Field(1.0, ge=0)
    lr_scheduler: Literal[
        "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial"
    ] = "constant"
    lr_warmup_steps: int | float = Field(0, ge=0)
    lr_scheduler_num_cycles: int = Field(1, ge=1)
    lr_scheduler_power: float = 1.0
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
    noise_offset: float | None = Field(None, ge=0)
    loss_type: Literal["l2"] = "l2"
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
    def text_encoder_rate(self) -> float:
        """The text encoder's learning rate; of a list, the first, as SD 1.5 has one encoder."""
        rates = self.text_encoder_lr if isinstance(self.text_encoder_lr, list) else [self.text_encoder_lr]
        first = rates[0] if rates else None
        return self.learning_rate if first is None else first


@dataclass(frozen=True)
class NativeSettings:
    """The pair, typed. Relative paths in it are relative to `root`, the run folder."""

    root: Path
    training: TrainingKeys
    dataset: DatasetKeys

    @property
    def image_dir(self) -> Path:
        return self.root / self.dataset.image_dir


def read_settings(dataset_toml: Path, training_toml: Path, *, root: Path) -> NativeSettings:
    """Reads the pair.

    Raises:
        UsageError: keys that native does not honour or values that it cannot take, a line each, naming file and key.
    """
    training = {key: value for key, value in _flatten(read_toml(training_toml)).items() if key not in MEANINGLESS}
    dataset: dict[str, Any] = {}
    for key in list(training):
        name = _FOREIGN_NAMES.get(key, key)
        if name in DatasetKeys.model_fields:
            dataset[name] = training.pop(key)
    own, findings = _merge_levels(read_toml(dataset_toml), dataset_toml)
    origin = {key: dataset_toml if key in own else training_toml for key in {**dataset, **own}}
    recipe = _validate(TrainingKeys, training, lambda _: training_toml, findings)
    images = _validate(DatasetKeys, {**dataset, **own}, lambda key: origin.get(key, dataset_toml), findings)
    if findings or recipe is None or images is None:
        raise UsageError.of_many(findings)
    settings = NativeSettings(root, recipe, images)
    findings = [f"{training_toml}: {finding}" for finding in _impossible(recipe)]
    if findings:
        raise UsageError.of_many(findings)
    return settings


def _flatten(tables: Mapping[str, Any]) -> dict[str, Any]:
    """One level of tables is flattened, as sd-scripts does; table names mean nothing."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat


def _merge_levels(tables: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], list[str]]:
    """The one subset's settings, the dataset's and [general]'s below them; and what is wrong with the structure."""
    findings = [f'{path}: key "{key}" is not known; only [general] and [[datasets]] are'
                for key in tables if key not in {"general", "datasets"}]  # fmt: skip
    datasets = tables.get("datasets", [])
    subsets = datasets[0].get("subsets", []) if len(datasets) == 1 else []
    if len(subsets) != 1:
        count = f"{len(datasets)} datasets" if len(datasets) != 1 else f"{len(subsets)} subsets"
        findings.append(
            f"{path}: has {count}; the native engine trains one dataset with one subset, "
            'others want [train] engine = "kohya"'
        )
        return {}, findings
    levels = (tables.get("general", {}), {k: v for k, v in datasets[0].items() if k != "subsets"}, subsets[0])
    merged = {key: value for level in levels for key, value in level.items()}
    return {key: value for key, value in merged.items() if key not in MEANINGLESS}, findings


_Model = TypeVar("_Model", bound=_Keys)


def _validate(model: type[_Model], values: Mapping[str, Any], path_of: Any, findings: list[str]) -> _Model | None:
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
    if training.network_train_unet_only and training.unet_rate == 0:
        found.append("unet_lr = 0 with network_train_unet_only = true leaves nothing to train")
    return found
