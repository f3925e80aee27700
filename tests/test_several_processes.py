"""One training on several GPUs: the command, who refuses, and that sd-scripts takes the steps that were counted.

The last is shown with real sd-scripts in two CPU processes that talk through gloo; see tiny_sd_scripts/.
"""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from test_engine_kohya import WRAPPER, make_job, make_spec

from brushset.bases.tokenizer import tokenizer_dir
from brushset.buckets import share_batches
from brushset.engines import choose_engine, planned_command
from brushset.engines.kohya import refuse_impossible
from brushset.engines.native import NativeEngine
from brushset.errors import EnvironmentProblem, UsageError
from brushset.files import write_json
from brushset.kohya.command import ACCELERATE_FILE, CHILD_SETTINGS, Launch, accelerate_settings, build_command
from brushset.kohya.scalars import read_losses
from brushset.kohya.source import Source
from brushset.log import silent
from brushset.lora.metadata import read_metadata
from brushset.process import child_env
from brushset.records import BaseFile
from brushset.stages.configure import choose_repeats, count_steps, describe_length


def test_a_process_a_gpu_at_a_port_of_its_own() -> None:
    argv = build_command(Launch(Path("/sd/train_network.py"), "bf16", cpu=False, processes=2))
    launcher = argv[: argv.index("/sd/train_network.py")]
    assert launcher[launcher.index("--num_processes") + 1] == "2"
    assert "--multi_gpu" in launcher
    assert launcher[launcher.index("--main_process_port") + 1] == "0"
    assert "--cpu" not in launcher
    assert accelerate_settings(2)["distributed_type"] == "MULTI_GPU"
    alone = build_command(Launch(Path("/sd/train_network.py"), "bf16", cpu=False))
    assert not {"--multi_gpu", "--main_process_port"} & set(alone)
    assert accelerate_settings(1)["distributed_type"] == "NO"
    with pytest.raises(AssertionError, match="in one process"):
        build_command(Launch(Path("x.py"), "no", cpu=True, processes=2))


def test_a_plan_shows_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train_network.py").touch()
    monkeypatch.setenv("SD_SCRIPTS_DIR", str(tmp_path))
    argv = planned_command(make_spec(processes=2))
    assert argv[argv.index("--num_processes") + 1] == "2"


def test_threads_are_shared_by_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("brushset.kohya.command.psutil.cpu_count", lambda **_: 12)
    argv = build_command(Launch(Path("x.py"), "no", cpu=False, processes=4))
    assert argv[argv.index("--num_cpu_threads_per_process") + 1] == "3"


def test_too_few_gpus_are_refused_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    base = BaseFile(name="x", path="/x", kind="folder", sha256="0", random=False, narrow=False)
    with pytest.raises(UsageError, match=r"processes = 2 wants as many GPUs, and 0 are seen here; fix: --gpus"):
        refuse_impossible(make_spec(processes=2, mixed_precision="no"), base, cuda=False)
    monkeypatch.setattr("brushset.engines.kohya._has_bf16", lambda: True)
    monkeypatch.setattr("brushset.engines.kohya._count_gpus", lambda: 1)
    with pytest.raises(UsageError, match="and 1 are seen here"):
        refuse_impossible(make_spec(processes=2), base, cuda=True)
    monkeypatch.setattr("brushset.engines.kohya._count_gpus", lambda: 2)
    refuse_impossible(make_spec(processes=2), base, cuda=True)


def test_native_refuses_more_than_one_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = r"\[train\] processes = 2: the native engine trains a style on one GPU"
    with pytest.raises(UsageError, match=said):
        choose_engine("native", processes=2)
    with pytest.raises(UsageError, match=said):
        NativeEngine().train(make_job(tmp_path, make_spec(engine="native", processes=2)), silent)

    def absent(**_: object) -> Source:
        raise EnvironmentProblem("no network")

    monkeypatch.setattr("brushset.engines.find_source", absent)
    with pytest.raises(UsageError, match=rf"{said}, and sd-scripts is not there \(no network\); fix: --engine kohya"):
        choose_engine("auto", processes=2)
    assert choose_engine("auto") == ("native", "no network")


LENGTHS = {
    "5 batches an epoch × 2 epochs → 10 optimizer steps; effective batch 1;": ({"epochs": 2}, 5),
    "5 batches an epoch ÷ 2 processes = 3 × 2 epochs → 6 optimizer steps; effective batch 4 × 2 × 1 = 8;": (
        {"epochs": 2, "processes": 2, "batch_size": 4},
        5,
    ),
    "5 batches an epoch ÷ 2 processes = 3 ÷ 2 accumulated = 2 × 3 epochs → 6 optimizer steps; effective batch 1 × 2 × 2 = 4;": (
        {"epochs": 3, "processes": 2, "gradient_accumulation_steps": 2},
        5,
    ),
    "→ 9 optimizer steps; effective batch 1 × 4 × 1 = 4; learning rate cosine over 9 steps, the first 2 of them warm-up": (
        {"max_steps": 9, "processes": 4, "lr_warmup_ratio": 0.25},
        8,
    ),
}


@pytest.mark.parametrize("said", LENGTHS)
def test_the_arithmetic_is_shown_in_one_line(said: str) -> None:
    train, batches = LENGTHS[said]
    told = describe_length(make_spec(**train).train, batches)
    assert said in told
    assert "\n" not in told


def test_automatic_repeats_aim_at_the_same_steps_with_more_processes() -> None:
    one, four = (make_spec(processes=count, batch_size=4, epochs=10).train for count in (1, 4))
    assert choose_repeats(one, 100)[0] == 4
    assert choose_repeats(four, 100)[0] == 16


@pytest.mark.vendor
@pytest.mark.slow
def test_sd_scripts_take_the_steps_and_rates_that_were_counted(
    tmp_path: Path, tiny_base: BaseFile, sd_scripts: Source
) -> None:
    images, processes = 5, 2
    spec = make_spec(epochs=3, gradient_accumulation_steps=2, processes=processes, mixed_precision="no",
                     network_dim=2, network_alpha=1.0, lr_warmup_ratio=0.25, unet_lr=1e-3)  # fmt: skip
    job = make_job(tmp_path, spec, tiny_base, tokenizer_dir(tiny_base))
    job.run.images.mkdir()
    for index in range(images):
        Image.effect_noise((128, 128), 40 + index).convert("RGB").save(job.run.images / f"{index}.png")
        (job.run.images / f"{index}.txt").write_text("inkstyle, a cat")
    batches = share_batches(images, processes)
    steps, epochs = count_steps(spec.train, batches)
    assert (batches, steps, epochs) == (3, 6, 3)
    write_json(job.run.config / ACCELERATE_FILE, accelerate_settings(processes))
    overrides = {"pretrained_model_name_or_path": tiny_base.path, "tokenizer_cache_dir": str(job.tokenizer_dir),
                 "output_dir": "out"}  # fmt: skip
    script = WRAPPER.with_name("several_processes.py")
    argv = build_command(Launch(script, "no", cpu=False, overrides=overrides, processes=processes))
    env = child_env({**CHILD_SETTINGS, "SD_SCRIPTS_DIR": str(sd_scripts.folder), "OMP_NUM_THREADS": "1"})
    done = subprocess.run(argv, cwd=job.run.root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "loading model for process 1/2" in done.stdout + done.stderr
    metadata = read_metadata(job.run.root / "out/ink.safetensors")
    assert (metadata["ss_steps"], metadata["ss_epoch"]) == (str(steps), str(epochs))
    assert metadata["ss_num_batches_per_epoch"] == str(batches)
    losses = read_losses(sorted((job.run.root / "logs").glob("**/events.out.tfevents.*")))
    assert [point.step for point in losses] == list(range(1, steps + 1))
    warm = int(0.25 * steps * processes)  # the schedule is made `processes` times as long, and stepped as often a step
    positions = [step * processes for step in range(1, steps + 1)]
    course = [p / warm if p < warm else (1 + math.cos(math.pi * (p - warm) / (steps * processes - warm))) / 2
              for p in positions]  # fmt: skip
    assert [point.lr for point in losses] == pytest.approx([1e-3 * share for share in course], abs=1e-9)
