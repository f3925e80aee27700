"""LoRAs for the small world: a style's pictures in a run folder with Kohya's TOML pair, and either engine on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brushset.bases.tokenizer import tokenizer_dir
from brushset.engines.kohya import KohyaEngine
from brushset.engines.native import NativeEngine
from brushset.errors import BrushsetError
from brushset.files import toml_text, write_atomic
from brushset.kohya.render import render_dataset, render_training
from brushset.load import build_spec
from brushset.log import silent
from brushset.native.dataset import plan_length, read_training_set
from brushset.native.settings import read_settings
from brushset.paths import RunPaths
from brushset.protocols import TrainJob
from brushset.records import BaseFile
from small_world.draw import PX
from small_world.styles import TRIGGERS, Picture

WRAPPER = Path(__file__).with_name("train_network.py")
RECIPE: dict[str, Any] = {
    "network_dim": 8, "network_alpha": 8.0, "unet_lr": 5e-3, "text_encoder_lr": 1e-3, "batch_size": 8,
    "lr_scheduler": "cosine", "lr_warmup_ratio": 0.05, "mixed_precision": "no", "save_precision": "float",
    "caption_dropout_rate": 0.0, "min_bucket_reso": PX, "max_bucket_reso": PX, "repeats": 1, "epochs": 12,
    "save_every_n_epochs": 1000, "save_state_minutes": 0.0,
}  # fmt: skip
"""Full strength of alpha/rank 1, and the highest rate that `configure` takes: its widths are a tenth of SD's, and so are its
steps."""
GATED: dict[str, Any] = RECIPE | {"unet_lr": 3e-3, "text_encoder_lr": 1e-2, "epochs": 16}
"""For small_world.styles.make_gated: the UNet learns a style whatever the text says, unless it has to wait for the text
encoder, which alone can make a made-up word heard. How much of a style is drawn with its trigger and with a wrong one: 0.72
and 0.01, while RECIPE draws as much with either."""


def make_job(root: Path, base: BaseFile, style: str, pictures: Sequence[Picture], **changes: Any) -> TrainJob:
    """The run folder of one training: pictures, captions, the pair. `changes` are keys of [train]."""
    train = {**RECIPE, **changes}
    tables = {"name": style, "trigger": TRIGGERS[style], "dataset": {"resolution": PX}, "train": train}
    spec = build_spec([("small world", tables)])
    run = RunPaths(root)
    write_pictures(run.images, pictures)
    write_atomic(run.dataset_toml, toml_text(render_dataset(spec, spec.train.repeats or 1)))
    write_atomic(run.training_toml, toml_text(render_training(spec)))
    settings = read_settings(run.dataset_toml, run.training_toml, root=run.root)
    images = read_training_set(settings)
    length = plan_length(images.plan, settings.dataset, settings.training)
    output = run.root / "out"
    output.mkdir()
    buckets = {f"{PX}x{PX}": len(pictures)}
    return TrainJob(
        spec, run, base, tokenizer_dir(base), output, length.steps, length.batches_per_epoch, buckets=buckets
    )


def write_pictures(folder: Path, pictures: Sequence[Picture]) -> None:
    """Images with captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.image.save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(picture.caption + "\n", encoding="utf-8")


def train_native(*jobs: TrainJob) -> list[Path]:
    """The files that the native engine leaves; several jobs are trained in one pass."""
    found: dict[int, Path] = {}
    for place, trained in NativeEngine("cpu").train_together([(job, silent) for job in jobs]):
        if isinstance(trained, BrushsetError):
            raise trained
        found[place] = jobs[place].output_dir / trained.weights
    return [found[place] for place in range(len(jobs))]


def train_kohya(job: TrainJob) -> Path:
    """The file that real sd-scripts leave; SD_SCRIPTS_DIR names them."""
    return job.output_dir / KohyaEngine(WRAPPER).train(job, silent).weights
