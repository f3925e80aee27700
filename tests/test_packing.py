"""Claims about several styles at once: apart from one another, told once, and gone when we are. Children are stand-ins."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
import typer
from typer.testing import CliRunner

from brushset.cli.options import Options, takes_options
from brushset.cli.packing import Pack, child_command, failure_of, parse_event
from brushset.errors import BrushsetError, Interrupted, TrainerFailed
from brushset.paths import PROJECT, RunsDir

SPEAKS = """
import json, os, sys, time
def say(event, **fields):
    print(json.dumps({"time": 1.0, "event": event, **fields}), flush=True)
style, mode = sys.argv[1:3]
say("run_start", folder=os.environ.get("CUDA_VISIBLE_DEVICES", ""))
print("a library's own words", file=sys.stderr, flush=True)
if mode == "fails":
    say("error", message="images/a.png: no image\\nimages/b.png: no image", exit_code=3)
    sys.exit(3)
if mode == "dies":
    os.kill(os.getpid(), 9)
time.sleep(0.3)
say("run_end", worked=3)
"""
TRAINS = """
import os, subprocess, sys, time
folder = sys.argv[1]
stubborn = "import signal, time\\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\\nprint('up', flush=True)\\ntime.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
child.stdout.readline()
open(os.path.join(folder, f"pids-{os.getpid()}"), "w").write(f"{os.getpid()} {child.pid}")
time.sleep(60)
"""


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.gpus: dict[str, object] = {}
        self.failures: list[tuple[str, str]] = []

    def heard(self, style: str, event: str, fields: Mapping[str, object]) -> None:
        assert fields["style"] == style
        self.events.append((style, event))
        self.gpus |= {style: fields["folder"]} if event == "run_start" else {}

    def failed(self, style: str, error: BrushsetError) -> None:
        self.failures.append((style, str(error)))


def script(tmp_path: Path, text: str) -> Callable[..., list[str]]:
    (tmp_path / "child.py").write_text(text)
    return lambda *words: [sys.executable, str(tmp_path / "child.py"), *words]


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def pids_below(folder: Path, count: int) -> list[int]:
    """The ids that so many children of TRAINS have left, once all are up."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        notes = [path.read_text() for path in folder.glob("pids-*")]
        if len(notes) == count and all(notes):
            return [int(word) for note in notes for word in note.split()]
        time.sleep(0.05)
    raise AssertionError("the children never came up")


def test_a_child_gets_every_option_that_is_not_the_parents_own(tmp_path: Path) -> None:
    options = Options(
        style=["a", "b"], images=["a=/x y", "b=/z"], smoke=True, profile=["h100"], engine="native", epochs=3, seed=7,
        runs_dir=tmp_path, settings=["train.network_dim=4", 'caption.style_words=["ink"]'], parallel=3, gpus="0,1", mps=True,
        until="report", force="audit",
    )  # fmt: skip
    python, front_door, *argv = child_command(options, "a", until="convert", force=None)
    assert (python, front_door) == (sys.executable, str(PROJECT / "orchestrate.py"))
    heard: list[Options] = []
    app = typer.Typer()

    @app.command()
    @takes_options
    def hear(options: Options) -> None:
        heard.append(options)

    done = CliRunner().invoke(app, argv)
    assert done.exit_code == 0, done.output
    assert heard == [
        Options(
            style=["a"], images=options.images, smoke=True, profile=["h100"], engine="native", epochs=3, seed=7,
            runs_dir=tmp_path, settings=options.settings, until="convert", json=True,
        )
    ]  # fmt: skip
    assert "--force" in child_command(options, "a", until="train", force="audit")


def test_lines_that_are_no_events_are_left_in_the_log() -> None:
    assert parse_event('{"time": 1, "event": "note", "text": "x"}') == ("note", {"text": "x"})
    for line in ("", "loading", "{not json", "[1]", '{"a": 1}', '{"event": 3}'):
        assert parse_event(line) == ("", {})


def test_a_failure_keeps_its_words_and_code() -> None:
    error = failure_of("ink", {"message": "a: bad\nb: bad", "exit_code": 3})
    assert (str(error), error.exit_code) == ("ink: a: bad\nink: b: bad", 3)
    trainer = failure_of("ink", {"message": "died", "exit_code": 5, "detail": "last words"})
    assert isinstance(trainer, TrainerFailed)
    assert trainer.detail == "last words"


def test_one_that_fails_and_one_that_is_killed_touch_no_other(tmp_path: Path) -> None:
    argv, heard = script(tmp_path, SPEAKS), Heard()
    runs = RunsDir(tmp_path / "runs")
    modes = {"first": "fine", "bad": "fails", "shot": "dies", "last": "fine"}
    slots = [{**os.environ, "CUDA_VISIBLE_DEVICES": gpu} for gpu in "01"]
    failures = Pack(runs, heard).run({style: argv(style, mode) for style, mode in modes.items()}, slots)
    assert {style: error.exit_code for style, error in failures.items()} == {"bad": 3, "shot": 5}
    assert sorted(style for style, _ in heard.failures) == ["bad", "shot"]
    assert dict(heard.failures)["bad"] == "bad: images/a.png: no image\nbad: images/b.png: no image"
    assert dict(heard.failures)["shot"].startswith("shot: killed by SIGKILL")
    assert [event for style, event in heard.events if style == "first"] == ["run_start", "run_end"]
    assert [event for style, event in heard.events if style == "last"] == ["run_start", "run_end"]
    assert "error" not in {event for _, event in heard.events}
    assert {heard.gpus["first"], heard.gpus["bad"]} == {"0", "1"}
    assert "a library's own words" in runs.child_log("first").read_text()


def test_no_more_run_at_once_than_there_are_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
import os, sys, time
from pathlib import Path
here = Path(sys.argv[1]) / sys.argv[2]
here.touch()
print(f'{{"event": "count", "n": {len(os.listdir(sys.argv[1]))}}}', flush=True)
time.sleep(0.3)
here.unlink()
"""
    argv, folder = script(tmp_path, text), tmp_path / "now"
    folder.mkdir()
    counts: list[int] = []
    heard = Heard()
    monkeypatch.setattr(heard, "heard", lambda *said: counts.append(said[2]["n"]))
    Pack(RunsDir(tmp_path / "runs"), heard).run(
        {name: argv(str(folder), name) for name in "abcde"}, [dict(os.environ)] * 2
    )
    assert len(counts) == 5
    assert max(counts) <= 2


def test_a_signal_ends_all_children_and_what_they_had_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brushset.executors.slots.STATE_PATIENCE_S", 0.5)

    def interrupt(signum: int, _frame: object) -> None:
        raise Interrupted(signum)

    argv, heard, found = script(tmp_path, TRAINS), Heard(), list[int]()

    def send() -> None:
        found.extend(pids_below(tmp_path, 2))
        os.kill(os.getpid(), signal.SIGUSR1)

    kept = signal.signal(signal.SIGUSR1, interrupt)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(Interrupted):
            Pack(RunsDir(tmp_path / "runs"), heard).run(
                {name: argv(str(tmp_path)) for name in ("a", "b", "c")}, [dict(os.environ)] * 2
            )
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, kept)
    assert len(found) == 4
    assert not [pid for pid in found if is_alive(pid)]
    assert heard.failures == []
    assert len(list(tmp_path.glob("pids-*"))) == 2, "the third was never started"


def test_a_bug_while_listening_ends_the_children_and_is_raised(tmp_path: Path) -> None:
    class Broken(Heard):
        def heard(self, style: str, event: str, fields: Mapping[str, object]) -> None:
            raise BrokenPipeError("nobody reads")

    text = "import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\nprint('{\"event\": \"x\"}', flush=True)\ntime.sleep(60)"
    argv = script(tmp_path, text)
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        Pack(RunsDir(tmp_path / "runs"), Broken()).run({"a": argv(str(tmp_path / "pid"))}, [dict(os.environ)])
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_what_a_killed_parent_left_is_ended_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brushset.trees.stop_processes.__defaults__", (0.5,))
    argv, runs = script(tmp_path, TRAINS), RunsDir(tmp_path / "runs")
    code = (
        "import os, sys; from pathlib import Path; from brushset.cli.packing import Pack; from brushset.paths import RunsDir\n"
        f"Pack(RunsDir(Path({str(runs.root)!r})), None).run({{'a': {argv(str(tmp_path))!r}}}, [dict(os.environ)])"
    )
    parent = psutil.Popen([sys.executable, "-c", code], cwd=PROJECT)
    left = pids_below(tmp_path, 1)
    parent.kill()
    parent.wait(10)
    assert [pid for pid in left if is_alive(pid)] == left
    (tmp_path / "child.py").write_text(SPEAKS)
    assert Pack(runs, Heard()).run({"a": argv("a", "fine")}, [dict(os.environ)]) == {}
    assert not [pid for pid in left if is_alive(pid)]
