"""Claims about `configure --effective`: what is printed is what a run uses, and any difference from the plan is named."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brushset.bases.tokenizer import tokenizer_dir
from brushset.errors import UsageError, VerificationFailed
from brushset.files import read_json, toml_text, write_atomic
from brushset.kohya.effective import (
    EFFECTIVE_FILE,
    ask_sd_scripts,
    captions_of,
    describe,
    differences,
    require_as_planned,
)
from brushset.kohya.render import render_dataset, render_training
from brushset.kohya.source import Source
from brushset.load import build_spec
from brushset.lora.metadata import read_metadata
from brushset.paths import PROJECT, RunPaths
from brushset.process import child_env
from brushset.records import BaseFile, Caption, Captions, EngineConfig
from brushset.spec import StyleSpec

WRAPPER = Path(__file__).parent / "tiny_sd_scripts" / "train_network.py"
pytestmark = [pytest.mark.vendor, pytest.mark.slow]


def make_spec(**train: Any) -> StyleSpec:
    train = {
        "engine": "kohya", "batch_size": 2, "min_bucket_reso": 64, "max_bucket_reso": 256, "network_dim": 4,
        "network_alpha": 2.0, "mixed_precision": "no", "unet_lr": 1e-3, "text_encoder_lr": 5e-4, "epochs": 3,
        "gradient_accumulation_steps": 2, "lr_warmup_ratio": 0.25, "repeats": 3, **train,
    }  # fmt: skip
    tables = {"name": "ink", "trigger": "inkstyle", "dataset": {"resolution": 128}, "train": train}
    return build_spec([("test", tables)])


def make_run(root: Path, spec: StyleSpec) -> RunPaths:
    """Three images: two square and one wide, so two buckets; at 3 repeats and batch 2 that is 3 + 2 batches an epoch."""
    run = RunPaths(root / "ink" / "one")
    write_atomic(run.dataset_toml, toml_text(render_dataset(spec, spec.train.repeats or 1)))
    write_atomic(run.training_toml, toml_text(render_training(spec)))
    run.images.mkdir()
    rng = np.random.default_rng(0)
    for index, (width, height) in enumerate([(128, 128), (128, 128), (240, 80)]):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(run.images / f"{index}.png")
        (run.images / f"{index}.txt").write_text(f"inkstyle, thing {index}, of ink\n", encoding="utf-8")
    return run


PLANNED = EngineConfig(
    engine="kohya", images=3, repeats=3, arithmetic="", batches_per_epoch=5, epochs=3, steps=9,
    buckets={"128x128": 2, "192x64": 1},
)  # fmt: skip
CAPTIONS = Captions(
    captioner="sidecar",
    trigger="inkstyle",
    captions=tuple(
        Caption(image=f"{index}.png", text=f"inkstyle, thing {index}, of ink", source="sidecar") for index in range(3)
    ),
)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, sd_scripts: Source) -> tuple[StyleSpec, RunPaths, dict[str, Any]]:
    spec = make_spec(shuffle_caption=True)
    run = make_run(tmp_path_factory.mktemp("run it's"), spec)
    return spec, run, ask_sd_scripts(sd_scripts, run)


Asked = tuple[StyleSpec, RunPaths, dict[str, Any]]


def test_what_sd_scripts_would_use_is_what_was_planned(asked: Asked) -> None:
    spec, run, effective = asked
    assert differences(spec, PLANNED, CAPTIONS, effective) == []
    require_as_planned(spec, PLANNED, CAPTIONS, effective)
    assert read_json(run.config / EFFECTIVE_FILE) == effective


def test_captions_are_as_a_step_sees_them(asked: Asked) -> None:
    _, _, effective = asked
    captions = captions_of(effective)
    assert captions.keys() == {"0.png", "1.png", "2.png"}
    for index in range(3):
        first, *rest = captions[f"{index}.png"].split(", ")
        assert first == "inkstyle"
        assert sorted(rest) == sorted([f"thing {index}", "of ink"])


def test_it_is_told_line_by_line(asked: Asked) -> None:
    _, _, effective = asked
    lines = {line.what: line.value for line in describe(effective)}
    assert lines["network"] == "networks.lora, dim 4, alpha 2"
    assert lines["text encoder"] == "72 modules, dim 4, acts with alpha/dim = 0.5"
    assert lines["UNet"].startswith("192 modules")
    assert (lines["UNet rate"], lines["text encoder rate"]) == ("0.001", "0.0005")
    assert lines["schedule"] == "cosine, 2 of 9 steps of warm-up"
    assert lines["dataset"] == "images: 3 images × 3 repeats an epoch"
    assert lines["bucket 128x128"] == "6 ÷ batch 2 → 3 batches"
    assert lines["bucket 192x64"] == "3 ÷ batch 2 → 2 batches"
    assert lines["length"] == "5 batches ÷ 2 an epoch × 3 epochs → 9 optimizer steps"
    assert lines["caption files"] == "*.txt"
    assert lines["captions"] == "keep_tokens 1, shuffled behind them, 5% dropped"
    assert lines["0.png"].startswith("'inkstyle, ")
    assert lines["seed"] == "42"
    assert lines["saves"] == "ink.safetensors at the end, and one every epoch"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda e: e.update(steps=1600), "optimizer steps: planned 9, but sd-scripts would use 1600"),
        (lambda e: e["network"]["groups"].pop(0), "text_encoder_lr: planned [0.0005], but sd-scripts would use []"),
        (lambda e: e["network"]["unet"].update(scales=[1.0]), "alpha/dim: planned [0.5], but sd-scripts would use [1.0]"),
        (lambda e: e["network"]["unet"].update(dims=[4, 8]), "dim: planned [4], but"),
        (lambda e: e["train"][0]["subsets"][0].update(caption_extension=".caption"), "caption_extension: planned '.txt', but"),
        (lambda e: e["train"][0]["images"][0].update(read=""), "caption of 0.png: planned 'inkstyle, thing 0, of ink', but sd-scripts would use ''"),
        (lambda e: e["args"].update(mixed_precision="bf16"), "mixed_precision: planned 'no', but"),
        (lambda e: e["optimizer"].update(name="torch.optim.sgd.SGD"), "optimizer: planned 'adamw', but sd-scripts would use 'sgd'"),
        (lambda e: e["train"][0]["images"][2].update(bucket=[128, 128]), "buckets: planned {'128x128': 2, '192x64': 1}, but"),
    ],
)  # fmt: skip
def test_any_difference_from_the_plan_is_named(asked: Asked, change: Any, told: str) -> None:
    spec, _, effective = asked
    altered = copy.deepcopy(effective)
    change(altered)
    with pytest.raises(VerificationFailed) as caught:
        require_as_planned(spec, PLANNED, CAPTIONS, altered)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(told)


def test_a_pair_that_sd_scripts_refuses_is_told_in_its_words(tmp_path: Path, sd_scripts: Source) -> None:
    run = make_run(tmp_path, make_spec(batch_size=1))
    write_atomic(
        run.dataset_toml, run.dataset_toml.read_text().replace("min_bucket_reso = 64", "min_bucket_reso = 256")
    )
    with pytest.raises(UsageError, match=r"cannot use this pair: AssertionError: min_bucket_reso must be .*; log: "):
        ask_sd_scripts(sd_scripts, run)


def test_several_processes_share_the_batches(tmp_path: Path, sd_scripts: Source) -> None:
    spec = make_spec(gradient_accumulation_steps=1)
    effective = ask_sd_scripts(sd_scripts, make_run(tmp_path, spec), processes=2)
    assert (effective["batches_per_epoch"], effective["steps"], effective["epochs"]) == (3, 9, 3)


def test_the_answer_equals_the_metadata_of_a_real_run(asked: Asked, tiny_base: BaseFile, sd_scripts: Source) -> None:
    """The same pair, trained by the real train_network.py on a narrow base: what it wrote into the file is what was said."""
    _, run, effective = asked
    argv = [
        sys.executable, "-W", "ignore", str(WRAPPER), "--config_file", str(run.training_toml),
        "--dataset_config", str(run.dataset_toml), "--pretrained_model_name_or_path", tiny_base.path,
        "--tokenizer_cache_dir", str(tokenizer_dir(tiny_base)), "--output_dir", "out",
    ]  # fmt: skip
    env = child_env(
        {
            "SD_SCRIPTS_DIR": str(sd_scripts.folder),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
    )
    done = subprocess.run(argv, cwd=run.root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    metadata = read_metadata(run.root / "out" / "ink.safetensors")
    args = effective["args"]
    of_args = (
        "learning_rate", "unet_lr", "text_encoder_lr", "network_dim", "network_alpha", "network_module", "lr_scheduler",
        "lr_warmup_steps", "gradient_accumulation_steps", "gradient_checkpointing", "mixed_precision", "max_train_steps",
        "max_grad_norm", "seed", "cache_latents", "caption_dropout_rate", "clip_skip", "max_token_length", "min_snr_gamma",
        "noise_offset", "output_name", "huber_c", "loss_type", "validation_split", "scale_weight_norms",
    )  # fmt: skip
    for key in of_args:
        assert metadata[f"ss_{key}"] == str(args[key]), key
    assert metadata["ss_steps"] == metadata["ss_max_train_steps"] == str(effective["steps"])
    assert metadata["ss_num_epochs"] == metadata["ss_epoch"] == str(effective["epochs"])
    assert metadata["ss_num_batches_per_epoch"] == str(effective["batches_per_epoch"])
    assert metadata["ss_optimizer"].startswith(effective["optimizer"]["name"])
    assert metadata["ss_num_train_images"] == str(effective["train"][0]["num_train_images"])
    (said,), (ours,) = json.loads(metadata["ss_datasets"]), effective["train"]
    assert said["batch_size_per_device"] == ours["batch_size"]
    assert said["resolution"] == [ours["width"], ours["height"]]
    for key in ("enable_bucket", "min_bucket_reso", "max_bucket_reso"):
        assert said[key] == ours[key]
    counted = [(bucket["resolution"], bucket["count"]) for bucket in said["bucket_info"]["buckets"].values()]
    assert counted == [(bucket["resolution"], bucket["count"]) for bucket in ours["buckets"]]
    for key in (
        "img_count",
        "num_repeats",
        "keep_tokens",
        "shuffle_caption",
        "flip_aug",
        "color_aug",
        "caption_prefix",
    ):
        assert said["subsets"][0][key] == ours["subsets"][0][key], key
    words = [word.strip() for image in ours["images"] for word in image["read"].split(",")]
    assert json.loads(metadata["ss_tag_frequency"])["images"] == {word: words.count(word) for word in words}


def test_the_command_prints_it_and_exits_0(tmp_path: Path, sd_scripts: Source) -> None:
    argv = [
        sys.executable, "orchestrate.py", "configure", "--effective", "--style", "cartoon", "--smoke", "--engine", "kohya",
        "--runs-dir", str(tmp_path),
    ]  # fmt: skip
    env = child_env(
        {"SD_SCRIPTS_DIR": str(sd_scripts.folder), "OMP_NUM_THREADS": "1", "BRUSHSET_CACHE": str(tmp_path / "cache")}
    )
    done = subprocess.run(argv, cwd=PROJECT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "192 modules, dim 32, acts with alpha/dim = 0.5" in done.stdout
    assert "as planned; all of it: " in done.stdout
    native = subprocess.run(
        ["native" if word == "kohya" else word for word in argv],
        cwd=PROJECT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert native.returncode == 2
    assert (
        "--effective asks sd-scripts, and cartoon trains with the native engine; fix: --engine kohya" in native.stderr
    )
