"""Claims about CUDA MPS, against a stand-in for its control program: own folders, ended after use, or a reason."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from programs import put_on_path

from brushset.cli import mps
from brushset.cli.mps import PROGRAM, mps_environment, probe_cuda

DAEMON = """
import os, subprocess, sys
from pathlib import Path
pipes = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
note = pipes / "nvidia-cuda-mps-control.pid"
record = Path(__file__).with_name("said")
record.open("a").write(" ".join(sys.argv[1:]) + "|" + os.environ.get("CUDA_VISIBLE_DEVICES", "all") + "\\n")
if "-d" in sys.argv:
    if Path(__file__).with_name("refuses").exists():
        sys.exit("An instance of this daemon is already running")
    loop = "import time\\nwhile True: time.sleep(0.1)"
    child = subprocess.Popen([sys.executable, "-c", loop, "nvidia-cuda-mps-control"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    note.write_text(str(child.pid))
    Path(__file__).with_name("pid").write_text(str(child.pid))
elif "quit" in sys.stdin.read():
    if not Path(__file__).with_name("deaf").exists():
        os.kill(int(note.read_text()), 9)
"""


class Notes(list[str]):
    def __call__(self, event: str, /, **fields: object) -> None:
        assert event == "note"
        self.append(str(fields["text"]))


def works(env: Mapping[str, str]) -> str:
    assert Path(env["CUDA_MPS_PIPE_DIRECTORY"]).is_dir()
    return ""


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr(mps, "DEFAULT_PIPES", tmp_path / "none")
    monkeypatch.setattr(mps, "_GRACE_S", 0.2)
    monkeypatch.setattr(mps.tempfile, "tempdir", str(tmp_path))
    put_on_path(monkeypatch, tmp_path / "bin", PROGRAM, DAEMON)
    return tmp_path / "bin"


def is_running(folder: Path) -> bool:
    pid = int((folder / "pid").read_text())
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_daemon_of_our_own_lives_as_long_as_it_is_used(daemon: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    notes = Notes()
    with mps_environment(notes, works) as env:
        assert set(env) == {"CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"}
        assert is_running(daemon)
    assert not is_running(daemon)
    assert not Path(env["CUDA_MPS_PIPE_DIRECTORY"]).parent.exists()
    assert (daemon / "said").read_text().splitlines() == ["-d|all", "|1"], (
        "a daemon that sees some GPUs numbers them anew"
    )
    assert notes == ["MPS: the styles' kernels run on the GPU at the same time"]


def test_it_is_ended_when_the_run_fails_and_when_it_does_not_listen(daemon: Path) -> None:
    (daemon / "deaf").touch()
    with pytest.raises(KeyboardInterrupt), mps_environment(Notes(), works):
        raise KeyboardInterrupt
    assert not is_running(daemon)


def test_a_daemon_that_refuses_or_serves_nobody_is_named_and_done_without(daemon: Path) -> None:
    notes = Notes()
    with mps_environment(notes, lambda _: "CUDA error: mps client failed to connect") as env:
        assert env == {}
        assert not is_running(daemon)
    (daemon / "refuses").touch()
    with mps_environment(notes, works) as env:
        assert env == {}
    assert notes[0].startswith("MPS does not work here: CUDA error: mps client failed to connect; the styles share")
    assert notes[1].startswith("MPS does not work here: An instance of this daemon is already running; the styles")


def test_a_running_daemon_is_left_alone(daemon: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notes = Notes()
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "control").touch()
    with mps_environment(notes, works) as env:
        assert env == {}
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/somewhere")
    with mps_environment(notes, works) as env:
        assert env == {}
    assert not (daemon / "said").exists()
    assert "left as it is" in notes[0]
    assert "CUDA_MPS_PIPE_DIRECTORY=/somewhere is set" in notes[1]


def test_without_the_program_a_note_says_so(daemon: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    notes = Notes()
    with mps_environment(notes, works) as env:
        assert env == {}
    assert notes == [
        "MPS is not to be had: nvidia-cuda-mps-control is not on PATH; the styles share the GPU in time slices"
    ]


def test_the_probe_says_why_there_is_no_gpu() -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    assert probe_cuda(hidden) != ""
