"""CUDA MPS, which lets kernels of several processes run on one GPU at the same time instead of in turns.

A control daemon of our own, with pipe and log folders of our own, is started for the time of a packed leg and ended
after it; one that is running already is used or left alone, never ended. Wherever it does not work (containers often
forbid it) the styles share the GPU in time slices as without it, and a note says why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from brushset.protocols import Emit
from brushset.trees import stop_processes

PROGRAM = "nvidia-cuda-mps-control"
DEFAULT_PIPES = Path("/tmp/nvidia-mps")  # noqa: S108  where NVIDIA's own default is
_PIPES, _LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_LIMIT_S = 30.0
_PROBE_LIMIT_S = 120.0
_GRACE_S = 5.0
_PROBE = "import torch; torch.ones(1, device='cuda').sum().item()"

Probe = Callable[[Mapping[str, str]], str]


def probe_cuda(env: Mapping[str, str]) -> str:
    """Computes one number on the GPU, as a client of the daemon; returns why it failed, or an empty string."""
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _PROBE], env=dict(env), capture_output=True, text=True, timeout=_PROBE_LIMIT_S, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"a client got no answer within {_PROBE_LIMIT_S:.0f} s"
    return "" if answer.returncode == 0 else _last_line(answer.stderr)


@contextmanager
def mps_environment(emit: Emit, probe: Probe = probe_cuda) -> Iterator[dict[str, str]]:
    """What the children's environment needs to be clients of a daemon: nothing, where there is none."""
    program = shutil.which(PROGRAM)
    if running := os.environ.get(_PIPES):
        emit("note", text=f"MPS: {_PIPES}={running} is set, so its daemon is used, and none is started")
        yield {}
        return
    if (DEFAULT_PIPES / "control").exists():
        emit("note", text=f"MPS: a daemon is running already ({DEFAULT_PIPES}); it is used, and left as it is")
        yield {}
        return
    if program is None:
        emit("note", text=f"MPS is not to be had: {PROGRAM} is not on PATH; the styles share the GPU in time slices")
        yield {}
        return
    folder = Path(tempfile.mkdtemp(prefix="brushset-mps-"))  # in the temporary folder: a socket's path is short
    env = {_PIPES: str(folder / "pipe"), _LOGS: str(folder / "log")}
    reason = ""
    try:
        if reason := _start(program, env, probe):
            _stop(program, env)
            emit("note", text=f"MPS does not work here: {reason}; the styles share the GPU in time slices")
        else:
            emit("note", text="MPS: the styles' kernels run on the GPU at the same time")
        yield {} if reason else env
    finally:
        if not reason:
            _stop(program, env)
        shutil.rmtree(folder, ignore_errors=True)


def _start(program: str, env: Mapping[str, str], probe: Probe) -> str:
    """Starts the daemon and tries it; returns why it does not work, or an empty string."""
    for name in (_PIPES, _LOGS):
        Path(env[name]).mkdir(parents=True, exist_ok=True)
    # A daemon that sees some GPUs only would number them anew for its clients.
    whole = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | dict(env)
    try:
        answer = subprocess.run(
            [program, "-d"], env=whole, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if answer.returncode:
        return _last_line(answer.stderr or answer.stdout) or f"{PROGRAM} -d ended with exit code {answer.returncode}"
    return probe({**os.environ, **env})


def _stop(program: str, env: Mapping[str, str]) -> None:
    """Asks the daemon to end; what still lives of it then is ended by its id, which it leaves in its pipe folder."""
    note = Path(env[_PIPES]) / f"{PROGRAM}.pid"
    pid = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            [program], env={**os.environ, **env}, input="quit\n", capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )  # fmt: skip
    if pid.isdigit():
        with suppress(psutil.Error):
            daemon = psutil.Process(int(pid))
            if PROGRAM[:15] in (daemon.name()[:15], *(Path(word).name[:15] for word in daemon.cmdline())):
                with suppress(psutil.TimeoutExpired):
                    daemon.wait(_GRACE_S)
                stop_processes([daemon])
    note.unlink(missing_ok=True)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
