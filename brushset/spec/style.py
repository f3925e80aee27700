"""Everything about one style, and which combinations of settings are impossible."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from brushset.spec.caption import CaptionSection
from brushset.spec.evaluate import EvaluateSection
from brushset.spec.executor import ExecutorSection
from brushset.spec.export import ExportSection
from brushset.spec.images import BaseSection, DatasetSection
from brushset.spec.section import Section
from brushset.spec.train import TrainSection

STYLE_NAME = r"^[a-z0-9][a-z0-9_-]{0,47}$"


class StyleSpec(Section):
    """Everything about one style, resolved."""

    name: str = Field(pattern=STYLE_NAME)
    trigger: str = Field(pattern=r"^[^\s,][^,\n]{0,63}$", description="the word that calls the style; no comma")
    description: str = ""
    smoke: bool = Field(
        False, description="set by the smoke profile: results show that the machinery runs, nothing more"
    )
    base: BaseSection = BaseSection()
    dataset: DatasetSection = DatasetSection()
    caption: CaptionSection = CaptionSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    executor: ExecutorSection = ExecutorSection()

    @model_validator(mode="after")
    def _combinations(self) -> StyleSpec:
        findings = list(_impossible(self))
        if findings:
            raise ValueError("\n".join(findings))
        return self

    def images_dir(self, project: Path) -> Path:
        """The folder of the user's images."""
        return project / (self.dataset.images or f"datasets/{self.name}")


def _impossible(spec: StyleSpec) -> list[str]:
    """Combinations that a trainer would refuse late or ignore silently, each with its fix."""
    train, size = spec.train, spec.dataset.resolution
    found = []
    if train.early_stop_patience and not train.validate_every_n_epochs:
        found.append("[train] early_stop_patience needs a validation loss; set validate_every_n_epochs = 1")
    if train.validate_every_n_epochs and not spec.dataset.holdout:
        found.append("[train] validate_every_n_epochs needs held-out images; set [dataset] holdout = 0.1")
    if train.enable_bucket and not train.min_bucket_reso <= size <= train.max_bucket_reso:
        found.append(
            f"[train] min_bucket_reso {train.min_bucket_reso} ≤ [dataset] resolution {size} ≤ "
            f"max_bucket_reso {train.max_bucket_reso} does not hold"
        )
    found += [
        f"[train] {key} = {getattr(train, key)} is not a multiple of bucket_reso_steps = {train.bucket_reso_steps}"
        for key in ("min_bucket_reso", "max_bucket_reso")
        if getattr(train, key) % train.bucket_reso_steps
    ]
    if size % 8:
        found.append(f"[dataset] resolution = {size} is not a multiple of 8, which a latent needs")
    if train.bucket_no_upscale and spec.dataset.upscaler != "lanczos":
        found.append("[dataset] upscaler has nothing to do with [train] bucket_no_upscale = true; set one of them only")
    if train.shuffle_caption and train.keep_tokens == 0:
        found.append("[train] shuffle_caption = true with keep_tokens = 0 moves the trigger; set keep_tokens = 1")
    if train.optimizer == "Prodigy" and train.unet_lr < 0.1:
        found.append(
            f'[train] optimizer = "Prodigy" finds its own rate: set unet_lr and text_encoder_lr to 1.0, not {train.unet_lr}'
        )
    if train.mixed_precision == "no" and train.attention == "xformers":
        found.append('[train] attention = "xformers" wants mixed_precision "fp16" or "bf16"')
    found += [
        f"[evaluate] {side} = {getattr(spec.evaluate, side)} is not a multiple of 8"
        for side in ("width", "height")
        if getattr(spec.evaluate, side) % 8
    ]
    return found
