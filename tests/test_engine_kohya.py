"""Claims about the kohya engine: the command, what it refuses, what it makes of a trainer's end; and, marked vendor,
that real sd-scripts train what the TOML pair says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brushset.engines import choose_engine, make_engine, planned_command, sd_scripts_state
from brushset.engines.kohya import KohyaEngine, refuse_impossible
from brushset.errors import EnvironmentProblem, TrainerFailed, UsageError, VerificationFailed
from brushset.files import read_json, toml_text, write_atomic
from brushset.kohya import source
from brushset.kohya.command import Launch, build_command
from brushset.kohya.render import render_dataset, render_training
from brushset.kohya.source import PINNED_COMMIT, Source, find_source
from brushset.load import build_spec
from brushset.lora.metadata import read_metadata
from brushset.lora.verify import verify_lora
from brushset.paths import RunPaths
from brushset.protocols import TrainJob
from brushset.records import BaseFile, Trained
from brushset.spec import StyleSpec

BASE = BaseFile(name="made up", path="/nowhere", kind="folder", sha256="0" * 64, random=True, narrow=False)
WRAPPER = Path(__file__).parent / "tiny_sd_scripts" / "train_network.py"

FAKE = """
import json, os, struct, sys, time
from pathlib import Path
words = sys.argv[1:]
options = {word: words[index + 1] if index + 1 < len(words) else "" for index, word in enumerate(words)}
mode = Path(__file__).with_name("mode").read_text()
print("accelerator device: cpu", flush=True)
if mode == "dies":
    raise AssertionError("caption file is empty: images/0.txt")
if mode == "no data":
    print("No data found. Please verify arguments")
    sys.exit(0)
loss = "nan" if mode == "nan" else "0.5"
for step in (1, 1, 2, 2):
    print(f"steps: {step}0%|#| {step}/2 [00:01<00:01, 1.00it/s, avr_loss={loss}]", file=sys.stderr, flush=True)
if mode == "nan":
    time.sleep(60)
def write(name, epoch, steps):
    meta = {"__metadata__": {"ss_steps": str(steps), "ss_epoch": str(epoch)}, "a.alpha": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}
    text = json.dumps(meta).encode()
    Path(options["--output_dir"], name).write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
if mode != "no file":
    write("ink-000001.safetensors", 1, 1)
    write("ink.safetensors", 2, 2)
    print("model saved.")
"""


def make_spec(**train: Any) -> StyleSpec:
    train = {"engine": "kohya", "batch_size": 1, "min_bucket_reso": 64, "max_bucket_reso": 256, **train}
    return build_spec(
        [("test", {"name": "ink", "trigger": "inkstyle", "dataset": {"resolution": 128}, "train": train})]
    )


def make_job(
    root: Path,
    spec: StyleSpec,
    base: BaseFile = BASE,
    tokenizer: Path = Path("/nowhere"),
    steps: int = 2,
    batches_per_epoch: int = 1,
) -> TrainJob:
    run = RunPaths(root / "runs it's" / "ink" / "one")
    write_atomic(run.dataset_toml, toml_text(render_dataset(spec, spec.train.repeats or 1)))
    write_atomic(run.training_toml, toml_text(render_training(spec)))
    output = run.root / ".tmp-train-1"
    output.mkdir()
    return TrainJob(spec, run, base, tokenizer, output, steps=steps, batches_per_epoch=batches_per_epoch)


class Events(list[tuple[str, dict[str, object]]]):
    def __call__(self, event: str, /, **fields: object) -> None:
        self.append((event, fields))

    def of(self, event: str) -> list[dict[str, object]]:
        return [fields for name, fields in self if name == event]


def build_without_accelerate(launch: Launch, *, config_dir: str) -> list[str]:
    argv = build_command(launch, config_dir=config_dir)
    return [sys.executable, *argv[argv.index(str(launch.script)) :]]


@pytest.fixture
def train_fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TrainJob, Trained, Events]]:
    """Trains with a stand-in for train_network.py that is started without accelerate, which takes seconds to import."""
    folder = tmp_path / "sd-scripts"
    folder.mkdir()
    (folder / "train_network.py").write_text(FAKE)
    monkeypatch.setenv("SD_SCRIPTS_DIR", str(folder))
    monkeypatch.setattr("brushset.kohya.attempts.launch.build_command", build_without_accelerate)

    def train(mode: str) -> tuple[TrainJob, Trained, Events]:
        (folder / "mode").write_text(mode)
        job, events = make_job(tmp_path, make_spec(epochs=2)), Events()
        return job, KohyaEngine().train(job, events), events

    return train


def test_every_launch_flag_is_said() -> None:
    argv = build_command(Launch(Path("/sd/train_network.py"), "bf16", cpu=True, overrides={"output_dir": "a b"}))
    assert argv[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    at = argv.index("/sd/train_network.py")
    launcher, trainer = argv[3:at], argv[at + 1 :]
    for flag in (
        "--num_processes",
        "--num_machines",
        "--mixed_precision",
        "--dynamo_backend",
        "--config_file",
        "--cpu",
        "--num_cpu_threads_per_process",
    ):
        assert flag in launcher
    assert trainer == [
        "--config_file",
        "config/training.toml",
        "--dataset_config",
        "config/dataset.toml",
        "--output_dir",
        "a b",
    ]
    assert "--cpu" not in build_command(Launch(Path("x.py"), "bf16", cpu=False))


def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    argv = build_command(Launch(Path("x.py"), "no", cpu=True))
    assert argv[argv.index("--num_cpu_threads_per_process") + 1] == "3"


def test_a_training_is_described_by_what_it_left(train_fake: Callable[..., tuple[TrainJob, Trained, Events]]) -> None:
    job, trained, events = train_fake("good")
    assert (trained.weights, trained.steps, trained.epochs, trained.tensors) == ("ink.safetensors", 2, 2, 1)
    assert [(item.path, item.epoch, item.step) for item in trained.checkpoints] == [("ink-000001.safetensors", 1, 1)]
    assert trained.engine_version == "unknown"
    assert trained.device == "cpu"
    assert trained.base_random
    assert [step["step"] for step in events.of("train_step")] == [1, 2]
    assert any("is no git checkout" in str(item["text"]) for item in events.of("warning"))
    assert any("the loss of 2 of 2 steps is not in" in str(item["text"]) for item in events.of("warning"))
    assert "avr_loss=0.5" in job.run.train_log.read_text()
    kept = read_json(job.run.config / "command.json")
    assert kept["argv"] == list(trained.command)
    assert kept["cwd"] == str(job.run.root)
    assert kept["shell"].startswith(sys.executable)


def test_exit_code_0_without_data_is_a_failed_verification(train_fake: Callable[..., Any]) -> None:
    with pytest.raises(VerificationFailed, match=r"exit code 0 and no file: it found no images; log: .*train\.log"):
        train_fake("no data")


def test_exit_code_0_without_a_file_is_a_failed_verification(train_fake: Callable[..., Any]) -> None:
    with pytest.raises(VerificationFailed, match="no file: it stopped after step 2 of 2"):
        train_fake("no file")


def test_a_nan_loss_stops_the_trainer_at_once(train_fake: Callable[..., Any]) -> None:
    with pytest.raises(VerificationFailed, match=r"loss became NaN by step 1 of 2.*fix: "):
        train_fake("nan")


def test_a_dying_trainer_is_explained(train_fake: Callable[..., Any]) -> None:
    with pytest.raises(
        TrainerFailed, match=r"exit code 1: AssertionError: caption file is empty: images/0\.txt; log: "
    ):
        train_fake("dies")


@pytest.mark.parametrize(
    ("train", "narrow", "finding"),
    [
        ({"mixed_precision": "fp16"}, False, 'mixed_precision = "fp16" fails on a CPU'),
        ({"attention": "xformers"}, False, 'attention = "xformers" needs a CUDA device'),
        ({}, True, "narrower than SD 1.5"),
    ],
)
def test_what_cannot_work_is_refused_before_it_starts(train: dict[str, Any], narrow: bool, finding: str) -> None:
    base = BASE.model_copy(update={"narrow": narrow})
    with pytest.raises(UsageError, match=finding):
        refuse_impossible(make_spec(**train), base, cuda=False)
    refuse_impossible(make_spec(), base, cuda=False, any_base=True)


def test_a_pair_that_was_edited_by_hand_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_network.py").touch()
    monkeypatch.setenv("SD_SCRIPTS_DIR", str(tmp_path))
    job = make_job(tmp_path, make_spec())
    job.run.training_toml.write_text(job.run.training_toml.read_text().replace("network_dim", "netwrok_dim"))
    with pytest.raises(UsageError, match='unknown key "netwrok_dim"; did you mean "network_dim"'):
        KohyaEngine().train(job, Events())


def test_sd_scripts_dir_wins_and_must_hold_the_script(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"SD_SCRIPTS_DIR = .*holds no train_network\.py"):
        find_source(environ={"SD_SCRIPTS_DIR": str(tmp_path)})
    (tmp_path / "train_network.py").touch()
    found = find_source(environ={"SD_SCRIPTS_DIR": str(tmp_path)})
    assert (found.folder, found.commit) == (tmp_path, "unknown")
    assert "no git checkout" in found.note


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def make_upstream(folder: Path) -> str:
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "train_network.py").write_text("print('hello')")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return git(folder, "rev-parse", "HEAD")


def test_a_checkout_off_the_pinned_commit_is_noted(tmp_path: Path) -> None:
    commit = make_upstream(tmp_path / "sd")
    found = find_source(environ={"SD_SCRIPTS_DIR": str(tmp_path / "sd")})
    assert found.commit == commit
    assert PINNED_COMMIT[:12] in found.note


def test_the_submodule_is_fetched_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = make_upstream(tmp_path / "upstream")
    project = tmp_path / "project"
    project.mkdir()
    git(project, "init", "-q")
    git(project, "submodule", "add", "-q", str(tmp_path / "upstream"), "vendor/sd-scripts")
    git(project, "commit", "-qm", "one")
    git(project, "submodule", "deinit", "-f", "vendor/sd-scripts")
    assert not (project / "vendor/sd-scripts/train_network.py").exists()
    with pytest.raises(EnvironmentProblem, match="the submodule is not initialised; fix: git submodule update"):
        find_source(fetch=False, environ={}, project=project)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "protocol.file.allow")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "always")
    assert find_source(environ={}, project=project).commit == commit


def test_an_unreachable_submodule_costs_seconds_and_says_why(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitmodules").write_text(
        '[submodule "vendor/sd-scripts"]\n\tpath = vendor/sd-scripts\n\turl = /no/such/place\n'
    )
    git(tmp_path, "update-index", "--add", "--cacheinfo", f"160000,{PINNED_COMMIT},vendor/sd-scripts")
    with pytest.raises(EnvironmentProblem, match=r"git submodule update failed: .*; fix: ") as caught:
        find_source(environ={}, project=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_git_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nsleep 60\n")
    fake.chmod(0o755)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitmodules").touch()
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    monkeypatch.setattr(source, "FETCH_LIMIT_S", 0.3)
    with pytest.raises(EnvironmentProblem, match=r"took longer than 0\.3 s"):
        find_source(environ={}, project=tmp_path)


def test_auto_takes_kohya_where_it_is_and_native_where_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_SCRIPTS_DIR", str(tmp_path))
    engine, reason = choose_engine("auto")
    assert engine == "native"
    assert "holds no train_network.py" in reason
    assert "\n" not in reason
    with pytest.raises(EnvironmentProblem):
        choose_engine("kohya")
    assert choose_engine("kohya", may_fetch=False)[0] == "kohya"
    assert "absent" in sd_scripts_state()
    (tmp_path / "train_network.py").touch()
    assert choose_engine("auto")[0] == "kohya"
    assert str(tmp_path) in choose_engine("auto")[1]
    assert choose_engine("native") == ("native", "as asked for")


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UsageError, match='engine = "auto" is no engine; fix: one of kohya, native'):
        make_engine("auto")


def test_a_plan_shows_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_network.py").touch()
    monkeypatch.setenv("SD_SCRIPTS_DIR", str(tmp_path))
    argv = planned_command(make_spec())
    assert str(tmp_path / "train_network.py") in argv
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in argv
    assert planned_command(make_spec(engine="native")) == []


TINY_TRAIN: dict[str, Any] = {
    "network_dim": 4, "network_alpha": 2.0, "max_steps": 3, "lr_warmup_ratio": 0.0, "mixed_precision": "no",
    "batch_size": 2, "gradient_accumulation_steps": 1, "unet_lr": 1e-3, "text_encoder_lr": 1e-3,
}  # fmt: skip


def write_images(folder: Path) -> None:
    """Three images: two square and one wide, so two buckets and, at batch size 2, two batches an epoch."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index, (width, height) in enumerate([(128, 128), (128, 128), (240, 80)]):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"inkstyle, thing {index}\n", encoding="utf-8")


@pytest.fixture(scope="module")
def tiny_training(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: BaseFile, sd_scripts: Source
) -> tuple[TrainJob, Trained, Events]:
    """Real sd-scripts on the narrow base, three steps over two epochs, through accelerate."""
    from brushset.bases.tokenizer import tokenizer_dir

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")
        patch.setenv("SD_SCRIPTS_DIR", str(sd_scripts.folder))
        spec, tokenizer = make_spec(**TINY_TRAIN), tokenizer_dir(tiny_base)
        job = make_job(tmp_path_factory.mktemp("run"), spec, tiny_base, tokenizer, steps=3, batches_per_epoch=2)
        write_images(job.run.images)
        events = Events()
        return job, KohyaEngine(WRAPPER).train(job, events), events


@pytest.mark.vendor
@pytest.mark.slow
def test_real_sd_scripts_train_the_264_modules(tiny_training: tuple[TrainJob, Trained, Events]) -> None:
    job, trained, events = tiny_training
    facts = verify_lora(job.output_dir / trained.weights, dim=4, alpha=2.0, text_encoder=True, narrow=True)
    assert (facts.modules, facts.tensors) == (264, 792)
    assert (trained.modules, trained.tensors) == (264, 792)
    assert (trained.steps, trained.epochs) == (3, 2)
    assert [(item.path, item.epoch, item.step) for item in trained.checkpoints] == [("ink-000001.safetensors", 1, 2)]
    assert [point.step for point in trained.losses] == [1, 2, 3]
    assert all(0 < point.loss < 10 for point in trained.losses)
    assert trained.losses[0].lr == pytest.approx(0.75e-3)  # cosine over 3 steps, after the first
    assert [step["step"] for step in events.of("train_step")] == [1, 2, 3]
    assert trained.engine_version == PINNED_COMMIT
    assert not events.of("warning")


@pytest.mark.vendor
@pytest.mark.slow
def test_the_file_says_what_the_style_said(tiny_training: tuple[TrainJob, Trained, Events]) -> None:
    job, trained, _ = tiny_training
    metadata = read_metadata(job.output_dir / trained.weights)
    datasets = json.loads(metadata["ss_datasets"])
    assert metadata["ss_sd_scripts_commit_hash"] == PINNED_COMMIT
    assert metadata["ss_network_dim"] == "4"
    assert float(metadata["ss_network_alpha"]) == 2.0
    assert float(metadata["ss_unet_lr"]) == float(metadata["ss_learning_rate"]) == 1e-3
    assert float(metadata["ss_caption_dropout_rate"]) == 0.05
    assert float(metadata["ss_min_snr_gamma"]) == 5.0
    assert metadata["ss_seed"] == "42"
    assert metadata["ss_num_batches_per_epoch"] == "2"
    assert metadata["modelspec.resolution"] == "128x128"
    assert metadata["modelspec.trigger_phrase"] == "inkstyle"
    assert metadata["modelspec.title"] == "ink"
    assert datasets[0]["batch_size_per_device"] == 2
    assert datasets[0]["resolution"] == [128, 128]
    assert datasets[0]["enable_bucket"] is True
    assert {tuple(item["resolution"]) for item in datasets[0]["bucket_info"]["buckets"].values()} == {
        (128, 128),
        (192, 64),
    }
    assert datasets[0]["subsets"][0]["keep_tokens"] == 1
    assert "inkstyle" in json.loads(metadata["ss_tag_frequency"])["images"]


EFFECTIVE = r"""
import contextlib, dataclasses, io, json, sys
sys.path.insert(0, sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()):
    import train_network
    from library import config_util, train_util
    parser = train_network.setup_parser()
    sys.argv = ["train_network.py", *sys.argv[2:]]
    args = train_util.read_config_from_file(parser.parse_args(), parser)
    train_util.verify_training_args(args)
    train_util.prepare_dataset_args(args, True)
    sanitizer = config_util.ConfigSanitizer(True, True, args.masked_loss, True)
    blueprint = config_util.BlueprintGenerator(sanitizer).generate(config_util.load_user_config(args.dataset_config), args)
    (dataset,) = blueprint.dataset_group.datasets
print(json.dumps({
    "args": vars(args), "dataset": dataclasses.asdict(dataset.params), "subset": dataclasses.asdict(dataset.subsets[0].params),
    "dreambooth": dataset.is_dreambooth and not dataset.is_controlnet,
}, default=str))
"""


@pytest.mark.vendor
@pytest.mark.slow
def test_sd_scripts_own_loaders_read_the_values_that_the_spec_says(tmp_path: Path, sd_scripts: Source) -> None:
    spec = make_spec(
        optimizer="Lion", optimizer_args=("weight_decay=0.1",), epochs=3, clip_skip=2, max_token_length=150, flip_aug=True,
        repeats=5, shuffle_caption=True, bucket_no_upscale=True, train_text_encoder=False, lr_warmup_ratio=0.1,
        data_loader_workers=1, noise_offset=0.05, mixed_precision="fp16", extra={"ip_noise_gamma": 0.1},
    )  # fmt: skip
    job = make_job(tmp_path, spec)
    words = [
        "--config_file",
        str(job.run.training_toml),
        "--dataset_config",
        str(job.run.dataset_toml),
        "--output_dir",
        "elsewhere",
    ]
    argv = [sys.executable, "-W", "ignore", "-c", EFFECTIVE, str(sd_scripts.folder), *words]
    done = subprocess.run(argv, cwd=sd_scripts.folder, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    args, dataset, subset, train = said["args"], said["dataset"], said["subset"], spec.train
    assert said["dreambooth"]
    for key in (
        "network_dim", "network_alpha", "unet_lr", "lr_scheduler", "max_grad_norm", "gradient_accumulation_steps",
        "mixed_precision", "save_precision", "seed", "vae_batch_size", "cache_latents", "min_snr_gamma", "noise_offset",
        "clip_skip", "max_token_length", "save_every_n_epochs", "gradient_checkpointing",
    ):  # fmt: skip
        assert args[key] == getattr(train, key), key
    assert args["output_dir"] == "elsewhere"
    assert (args["optimizer_type"], args["optimizer_args"]) == ("Lion", ["weight_decay=0.1"])
    assert (args["max_train_epochs"], args["lr_warmup_steps"]) == (3, 0.1)
    assert args["network_train_unet_only"] is args["sdpa"] is args["no_half_vae"] is True
    assert args["xformers"] is False
    assert args["persistent_data_loader_workers"] is True
    assert args["ip_noise_gamma"] == 0.1
    assert dataset["resolution"] == [128, 128]
    for key in (
        "batch_size",
        "enable_bucket",
        "min_bucket_reso",
        "max_bucket_reso",
        "bucket_reso_steps",
        "bucket_no_upscale",
    ):
        assert dataset[key] == getattr(train, key), key
    for key in ("flip_aug", "shuffle_caption", "keep_tokens", "caption_dropout_rate"):
        assert subset[key] == getattr(train, key), key
    assert (subset["num_repeats"], subset["image_dir"], subset["caption_extension"]) == (5, "images", ".txt")
