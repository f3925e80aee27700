"""The front door: exit codes, one line an error, nothing but JSON on stdout where JSON was asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import typer
from PIL import Image

import orchestrate
from brushset import engines
from brushset.cli import menu
from brushset.cli.guard import guarded
from brushset.errors import TrainerFailed
from brushset.paths import PROJECT, RunPaths
from brushset.protocols import Emit, TrainJob
from brushset.records import Trained
from brushset.session import Ask, Outcome

COMMANDS = (
    "all", "audit", "preprocess", "caption", "configure", "train", "choose", "convert",
    "inference", "evaluate", "export", "report", "status", "doctor",
    "inspect", "resize", "metadata", "sweep", "queue", "logs", "cancel", "resume", "clean",
)  # fmt: skip
OPTIONS = (
    "--style", "--images", "--smoke", "--profile", "--base-model", "--engine", "--epochs", "--batch-size", "--seed",
    "--budget", "--runs-dir", "--parallel", "--gpus", "--mps", "--until", "--force", "--set", "--dry-run", "--json",
)  # fmt: skip


@pytest.fixture
def signals() -> Iterator[None]:
    """Puts the handlers back that a command sets."""
    kept = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in kept.items():
        signal.signal(signum, handler)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "im ages"
    folder.mkdir()
    for number in range(4):
        Image.effect_noise((300, 300), 60 + number).convert("RGB").save(folder / f"{number}.png")
    return folder


def call(*argv: str) -> int:
    return guarded(orchestrate.app, argv)


def run(*argv: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROJECT / "orchestrate.py"), *argv],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def smoke(images: Path, tmp_path: Path, *more: str) -> tuple[str, ...]:
    where = ("--images", str(images), "--runs-dir", str(tmp_path / "runs"))
    return ("--style", "cartoon", "--smoke", "--engine", "native", *where, *more)


def test_the_help_names_every_command_and_option() -> None:
    text = run("--help").stdout
    assert [name for name in (*COMMANDS, *OPTIONS) if name not in text] == []


def test_every_command_stands_in_one_section_of_the_help() -> None:
    group = typer.main.get_command(orchestrate.app)
    assert isinstance(group, menu.Menu)
    listed = [name for names in menu.SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(group.commands)


def test_without_anything_the_help_is_shown_and_the_code_is_2() -> None:
    answer = run()
    assert answer.returncode == 2
    assert "Usage" in answer.stdout


def test_in_a_bare_python_one_line_says_how_to_get_the_dependencies() -> None:
    argv = [sys.executable, "-S", "-I", str(PROJECT / "orchestrate.py"), "--style", "cartoon"]
    answer = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert answer.returncode == 4
    assert answer.stderr.splitlines() == [answer.stderr.strip()]
    assert "pip install uv && uv run orchestrate.py --style cartoon" in answer.stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--style", "cartooon"), 'did you mean "cartoon"?'),
        (("--stile", "cartoon"), "--style"),
        (("trian",), "train"),
        (("--style", "../x"), "a style is named by"),
        (("--style", "cartoon", "--set", "train.netwrok_dim=4"), 'did you mean "network_dim"?'),
        (("--style", "cartoon", "--epochs", "-1", "--dry-run"), "--epochs: input should be greater than or equal to 1"),
        (("--style", "cartoon", "--until", "trian", "--engine", "native"), "audit, preprocess, caption"),
        (("inference", "--prompts", "a", "--loras", ":x"), "expected STYLE:WEIGHT"),
    ],
)
def test_wrong_usage_is_code_2_and_one_line(argv: tuple[str, ...], said: str) -> None:
    answer = run(*argv)
    assert answer.returncode == 2, answer.stderr
    assert said in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_missing_images_are_code_3(tmp_path: Path) -> None:
    answer = run(
        "--style", "cartoon", "--engine", "native", "--images", str(tmp_path / "none"), "--runs-dir", str(tmp_path)
    )
    assert answer.returncode == 3
    assert "no such folder" in answer.stderr


def test_a_missing_base_model_is_code_4(tmp_path: Path, images: Path, signals: None) -> None:
    assert call(*smoke(images, tmp_path, "--base-model", "nobody/nothing")) == 4


def test_sdxl_as_base_is_code_2_before_any_training(
    tmp_path: Path, images: Path, signals: None, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import save_file

    xl = tmp_path / "xl.safetensors"
    save_file({"conditioner.embedders.1.model.transformer.resblocks.0.ln_1.weight": torch.zeros(4)}, xl)
    assert call(*smoke(images, tmp_path, "--base-model", str(xl))) == 2
    assert "SDXL" in capsys.readouterr().err


class FailingEngine:
    """Dies as a trainer does."""

    name = "native"

    def command(self, job: TrainJob) -> list[str]:
        return []

    def train(self, job: TrainJob, emit: Emit) -> Trained:
        raise TrainerFailed("the trainer died: CUDA out of memory; fix: --batch-size 2")


class EmptyEngine(FailingEngine):
    """Ends well and leaves nothing, as sd-scripts can."""

    def train(self, job: TrainJob, emit: Emit) -> Trained:
        return Trained(
            engine="native", engine_version="", command=(), weights="cartoon.safetensors", weights_sha256="", checkpoints=(),
            steps=2, epochs=1, losses=(), seconds=0, device="", modules=264, tensors=792, base_sha256="", base_random=True,
        )  # fmt: skip


@pytest.mark.parametrize(("engine", "code"), [(FailingEngine, 5), (EmptyEngine, 6)])
def test_a_trainer_that_fails_is_5_and_one_that_leaves_nothing_is_6(
    tmp_path: Path, images: Path, signals: None, monkeypatch: pytest.MonkeyPatch, engine: type[FailingEngine], code: int
) -> None:
    monkeypatch.setattr(engines, "ENGINES", {"native": engine})
    assert call(*smoke(images, tmp_path)) == code
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_a_bug_is_code_1_with_its_trace_kept(
    tmp_path: Path, images: Path, signals: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Buggy(FailingEngine):
        def train(self, job: TrainJob, emit: Emit) -> Trained:
            raise ZeroDivisionError("oops")

    monkeypatch.setattr(engines, "ENGINES", {"native": Buggy})
    assert call(*smoke(images, tmp_path)) == 1
    assert "this is a bug of ours" in capsys.readouterr().err
    assert "ZeroDivisionError" in next((tmp_path / "runs").rglob("error.log")).read_text()


WAITING = """
    import subprocess, sys, time
    sys.path.insert(0, sys.argv[1])
    import orchestrate
    from brushset import engines
    from brushset.process import child_env, run_command
    class Waiting:
        name = "native"
        def command(self, job): return []
        def train(self, job, emit):
            child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']); print('up', flush=True); time.sleep(300)"
            run_command([sys.executable, "-c", child], cwd=job.run.root, env=child_env({}), log_path=job.run.train_log, on_line=lambda line: print(line, flush=True))
    engines.ENGINES = {"native": Waiting}
    sys.argv = ["orchestrate.py", *sys.argv[2:]]
    sys.exit(orchestrate.main())
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_whole_tree(tmp_path: Path, images: Path, signum: int, code: int) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(WAITING), str(PROJECT), *smoke(images, tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        tree = psutil.Process(child.pid).children(recursive=True)
        assert len(tree) >= 2
        os.kill(child.pid, signum)
        assert child.wait(timeout=60) == code
    _gone, alive = psutil.wait_procs(tree, timeout=5)
    assert alive == []
    manifest = json.loads((tmp_path / "runs/cartoon/latest/run.json").read_text())
    assert manifest["status"] == "interrupted"


def test_a_signal_in_the_middle_of_an_import_is_not_swallowed(
    tmp_path: Path, images: Path, signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Importing(FailingEngine):
        def train(self, job: TrainJob, emit: Emit) -> Trained:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            except Exception as error:  # as libraries' lazy imports do
                raise RuntimeError("failed to import") from error
            raise AssertionError("the signal never came")

    monkeypatch.setattr(engines, "ENGINES", {"native": Importing})
    assert call(*smoke(images, tmp_path)) == 130


def test_after_kill_9_the_next_start_stops_the_orphan(tmp_path: Path, images: Path, signals: None) -> None:
    argv = [sys.executable, "-c", textwrap.dedent(WAITING), str(PROJECT), *smoke(images, tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        tree = psutil.Process(child.pid).children(recursive=True)
        os.kill(child.pid, signal.SIGKILL)
        child.wait(timeout=30)
        assert all(process.is_running() for process in tree)
        assert call(*smoke(images, tmp_path)) == 0
        deadline = time.monotonic() + 40
        while any(process.is_running() and process.status() != "zombie" for process in tree):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_locked_style_is_code_75(tmp_path: Path, images: Path, signals: None) -> None:
    from brushset.paths import RunsDir
    from brushset.session import style_lock

    with style_lock(RunsDir(tmp_path / "runs"), "cartoon"):
        assert run(*smoke(images, tmp_path)).returncode == 75


def test_a_dry_run_prints_the_plan_and_touches_nothing(tmp_path: Path, images: Path) -> None:
    answer = run(*smoke(images, tmp_path, "--dry-run"))
    assert answer.returncode == 0, answer.stderr
    for said in ("audit → preprocess → caption", "config/dataset.toml", "network_dim = 32", 'trigger = "cartoonstyle"'):
        assert said in answer.stdout
    assert not (tmp_path / "runs").exists()


def test_the_command_of_a_kohya_dry_run_is_the_exact_argv(tmp_path: Path, images: Path) -> None:
    answer = run(
        "--style",
        "cartoon",
        "--engine",
        "kohya",
        "--images",
        str(images),
        "--runs-dir",
        str(tmp_path / "r"),
        "--dry-run",
    )
    assert answer.returncode == 0, answer.stderr
    assert "train_network.py" in answer.stdout
    assert "--mixed_precision" in answer.stdout


def test_json_is_the_only_thing_on_stdout(tmp_path: Path, images: Path) -> None:
    answer = run(*smoke(images, tmp_path, "--until", "caption", "--json"))
    assert answer.returncode == 0, answer.stderr
    events = [json.loads(line)["event"] for line in answer.stdout.splitlines()]
    assert events[0] == "run_start"
    assert events.count("stage_end") == 3
    assert events[-2:] == ["run_end", "times"], "of the style, then of the command"


def test_audit_reads_only(tmp_path: Path, images: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(images.iterdir())}
    answer = run("audit", "--images", str(images), "--runs-dir", str(tmp_path / "runs"))
    assert answer.returncode == 0, answer.stderr
    assert "too few" in answer.stdout
    assert {path: path.read_bytes() for path in sorted(images.iterdir())} == before


def test_preprocess_takes_three_styles_at_once(tmp_path: Path, images: Path, signals: None) -> None:
    folders = [word for style in ("anime", "watercolor", "cartoon") for word in ("--images", f"{style}={images}")]
    assert call("preprocess", *folders, "--smoke", "--engine", "native", "--runs-dir", str(tmp_path / "runs")) == 0
    for style in ("anime", "watercolor", "cartoon"):
        assert len(list((tmp_path / "runs" / style / "latest" / "images").glob("*.png"))) == 4


def test_later_commands_remember_the_folder_of_the_newest_real_run(
    tmp_path: Path, images: Path, signals: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "ENGINES", {"native": FailingEngine})
    same = ("--engine", "native", "--runs-dir", str(tmp_path / "runs"), "--set", "caption.captioner=trigger-only")
    assert call("preprocess", "--images", f"cartoon={images}", *same) == 0
    capsys.readouterr()
    assert call("train", "--base-model", "random:tiny", "--epochs", "2", *same) == 5
    said = capsys.readouterr().err
    assert "taken from run" in said
    assert "anime" not in said


def test_a_forced_stage_of_several_styles_is_redone_once(
    tmp_path: Path, images: Path, signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, str | None]] = []

    def note(ask: Ask, *_: object) -> Outcome:
        asked.append((ask.spec.name, ask.until, ask.force))
        return Outcome(RunPaths(tmp_path), 0)

    monkeypatch.setattr("brushset.cli.runs.run_style", note)
    two = ("--images", f"anime={images}", "--images", f"cartoon={images}", "--smoke", "--engine", "native")
    two += ("--set", "train.pack=false", "--runs-dir", str(tmp_path / "runs"))  # packed: tests/test_packed_runs.py
    for stage, legs in {"train": ("train", None), "evaluate": (None, "evaluate")}.items():
        asked.clear()
        assert call("all", *two, "--force", stage) == 0
        assert asked == [
            (style, until, force)
            for until, force in zip(("convert", None), legs, strict=True)
            for style in ("anime", "cartoon")
        ]


def test_one_bad_style_does_not_touch_the_others(tmp_path: Path, images: Path, signals: None) -> None:
    argv = (
        "--images",
        f"anime={tmp_path / 'none'}",
        "--images",
        f"cartoon={images}",
        "--runs-dir",
        str(tmp_path / "runs"),
    )
    assert call("caption", *argv, "--smoke", "--engine", "native") == 3
    assert len(list((tmp_path / "runs/cartoon/latest/images").glob("*.txt"))) == 4


def test_status_works_from_the_run_folders_alone(tmp_path: Path, images: Path, signals: None) -> None:
    assert call(*smoke(images, tmp_path, "--until", "caption")) == 0
    answer = run("status", "--runs-dir", str(tmp_path / "runs"), "--json")
    row = json.loads(answer.stdout)
    assert (row["style"], row["status"], sorted(row["stages"])) == (
        "cartoon",
        "partial",
        ["audit", "caption", "preprocess"],
    )


def test_evaluate_before_training_says_what_to_run(
    tmp_path: Path, images: Path, signals: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*smoke(images, tmp_path, "--until", "caption")) == 0
    assert call("evaluate", "--runs-dir", str(tmp_path / "runs")) == 2
    assert "configure has not been done" in capsys.readouterr().err


def test_doctor_checks_the_machine() -> None:
    answer = run("doctor")
    assert answer.returncode in {0, 4}
    for said in ("Python", "packages", "device", "disk", "sd-scripts"):
        assert said in answer.stdout
