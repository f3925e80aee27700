"""A run folder that the native engine can train from: a few random images, captions, and a pair of TOMLs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brushset.files import toml_text, write_atomic
from brushset.native.settings import NativeSettings, read_settings
from brushset.paths import RunPaths

DATASET: dict[str, Any] = {
    "caption_extension": ".txt",
    "keep_tokens": 1,
    "resolution": 64,
    "min_bucket_reso": 64,
    "max_bucket_reso": 128,
    "enable_bucket": True,
    "batch_size": 2,
    "image_dir": "images",
}
TRAINING: dict[str, Any] = {
    "seed": 7,
    "output_name": "cartoon",
    "network_module": "networks.lora",
    "network_dim": 4,
    "network_alpha": 2.0,
    "unet_lr": 1e-3,
    "text_encoder_lr": [5e-4],
    "learning_rate": 1e-3,
    "max_train_epochs": 2,
    "save_every_n_epochs": 1,
    "save_precision": "float",
    "sdpa": True,
    "cache_latents": True,
    "vae_batch_size": 4,
    "min_snr_gamma": 5.0,
}
SIZES = ((64, 64), (80, 70), (64, 64), (100, 100), (64, 64))


def make_run(
    root: Path, dataset: dict[str, Any] | None = None, training: dict[str, Any] | None = None, *, heldout: int = 0
) -> RunPaths:
    """A run folder with images and the pair. A value of None takes a key away. The last `heldout` images are held out."""
    run = RunPaths(root)
    _write_images(run.images)
    for number in range(len(SIZES) - heldout, len(SIZES)):
        run.heldout.mkdir(exist_ok=True)
        for suffix in (".png", ".txt"):
            (run.images / f"{number}{suffix}").rename(run.heldout / f"{number}{suffix}")
    write_pair(run, dataset or {}, training or {})
    return run


def write_pair(run: RunPaths, dataset: dict[str, Any], training: dict[str, Any]) -> None:
    """Writes both TOMLs: the ones above with changes, and a split where images are held out."""
    images = {key: value for key, value in {**DATASET, **dataset}.items() if value is not None}
    recipe = {key: value for key, value in {**TRAINING, **training}.items() if value is not None}
    datasets: list[dict[str, Any]] = [{"subsets": [{"image_dir": images.pop("image_dir")}]}]
    if run.heldout.is_dir() and "validate_every_n_epochs" in recipe:
        still = {"batch_size": 1, "validation_split": 1.0, "validation_seed": 7, "caption_dropout_rate": 0.0}
        split = {**still, "shuffle_caption": False, "flip_aug": False, "subsets": [{"image_dir": "images/heldout"}]}
        datasets.append(split)
    write_atomic(run.dataset_toml, toml_text({"datasets": datasets, "general": images}))
    write_atomic(run.training_toml, toml_text({"all": recipe}))


def settings_of(run: RunPaths) -> NativeSettings:
    """The pair, read."""
    return read_settings(run.dataset_toml, run.training_toml, root=run.root)


def _write_images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    for number, (width, height) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"cartoonstyle, a cat, part {number}\n", encoding="utf-8")
