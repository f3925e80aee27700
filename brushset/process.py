r"""How is a child process run so that nothing is lost and nothing is left behind?

`run_command` is the one impure subprocess function. It tees stdout and stderr to a log, hands each line on (tqdm's
`\r` lines too), and stops the *whole tree* whenever the parent leaves early: `accelerate launch` orphans the trainer
when only the launcher is signalled. The child stays in our session, so that Ctrl-C in a terminal and a batch system's
signal to the process group reach it too. The main thread polls: a signal handler that waited for the child while
`Popen.wait` holds its lock would never see it end. Who survives `kill -9` of the parent is on record in a file
beside the log, and `stop_orphan` ends it at the next start.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from brushset.errors import BrushsetError, EnvironmentProblem, TrainerFailed
from brushset.failure import GPU_FAILED, explain_failure, last_words
from brushset.files import read_json, write_json
from brushset.trees import STOP_PATIENCE_S, find_living, same_process, stop_processes

TAIL_LINES = 40
_HELD_LINES = 200  # the launcher of several processes has many after the trainer's last
STATE_PATIENCE_S = 60.0  # of a run of ours: it saves its state first (brushset.stopping)
_POLL_S = 0.1
_DRAIN_S = 5.0
_BAR_STATE = re.compile(
    rb"\d(?:it/s|s/it)[^\r\n]*\]\s*$"
)  # tqdm ends a state with the next one's \r: do not wait for it

_KEPT_NAMES = frozenset((
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "XDG_CACHE_HOME", "BRUSHSET_CACHE", "KMP_DUPLICATE_LIB_OK", "SYSTEMROOT",
    "WINDIR", "COMSPEC", "PATHEXT", "APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "USERPROFILE",
))  # fmt: skip
_KEPT_PREFIXES = (
    "LC_", "CUDA", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "HF_", "TRANSFORMERS_", "TORCH", "PYTORCH_", "TRITON_",
    "XFORMERS_", "BNB_", "BITSANDBYTES_", "SD_", "OMP_", "MKL_", "OPENBLAS_", "GOMP_",
)  # fmt: skip
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY", re.IGNORECASE)


@dataclass(frozen=True)
class Finished:
    """A command that ended with exit code 0."""

    seconds: float
    tail: tuple[str, ...]


def run_command(  # noqa: PLR0913 - each is a word of what a process is, and all but argv are named
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log_path: Path,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None] = lambda: None,
    timeout_s: float | None = None,
    stop_patience_s: float = STOP_PATIENCE_S,
) -> Finished:
    """Runs a command to its end. `on_line` gets every line, in this thread; what it or `on_tick` raises stops the command.

    Args:
        argv: never seen by a shell.
        cwd: the command's working directory.
        env: its whole environment; see `child_env`.
        log_path: overwritten with stdout and stderr; `process_file(log_path)` names the processes while they live.
        on_line: called with each line, without its end.
        on_tick: called some ten times a second while the command runs.
        timeout_s: longer, and the command is stopped and has failed.
        stop_patience_s: between TERM and KILL, where it is stopped: it may have a state to save.

    Raises:
        TrainerFailed: another exit code than 0, or the timeout; `detail` holds the last lines, log path and command.
        EnvironmentProblem: the command or its log could not be started or written.
    """
    tail: collections.deque[str] = collections.deque(maxlen=_HELD_LINES)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    started = time.monotonic()
    with _open_log(log_path) as log:
        child = _start(argv, cwd, env)
        tree = _Tree(child.pid, process_file(log_path))
        assert child.stdout is not None
        reader = threading.Thread(target=_read_lines, args=(child.stdout, log, lines), daemon=True)
        reader.start()
        try:
            while child.poll() is None or reader.is_alive():
                tree.record()
                _hand_on(lines, tail, on_line)
                on_tick()
                if timeout_s is not None and time.monotonic() - started > timeout_s:
                    raise _failure(argv, None, tail, log_path, f"took longer than {timeout_s:g} s")
                if child.returncode is not None and tree.outlived(_DRAIN_S):
                    break
            _hand_on(lines, tail, on_line, wait=False)
        finally:
            tree.stop(stop_patience_s)
            reader.join(_DRAIN_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_DRAIN_S)
    _hand_on(lines, tail, lambda _: None, wait=False)
    if child.returncode != 0:
        raise _failure(argv, child.returncode, tail, log_path)
    return Finished(time.monotonic() - started, tuple(tail))


def child_env(extra: Mapping[str, str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: what is on the allow-list and names no secret, then `extra`.

    Proxies are not on it: the trainer is offline, and a proxy's address may hold a password.
    """
    source = os.environ if environ is None else environ
    kept = {
        name: value
        for name, value in source.items()
        if (name.upper() in _KEPT_NAMES or name.upper().startswith(_KEPT_PREFIXES)) and not _SECRET.search(name)
    }
    return {**kept, **extra}


def process_file(log_path: Path) -> Path:
    """Where the processes behind a log are on record while they live."""
    return log_path.with_suffix(".process.json")


def stop_orphan(path: Path, patience_s: float = STOP_PATIENCE_S) -> list[int]:
    """Ends processes that a killed parent left running; returns their ids. `path` is a `process_file`."""
    if not path.is_file():
        return []
    try:
        recorded = read_json(path)["processes"]
        known = [p for entry in recorded if (p := same_process(entry["pid"], entry["create_time"]))]
    except (BrushsetError, KeyError, TypeError):
        known = []
    stopped = sorted(stop_processes(known, patience_s))
    path.unlink(missing_ok=True)
    return stopped


class _Tree:
    """A child, all that descends from it, and the file that says so."""

    def __init__(self, pid: int, path: Path) -> None:
        self._path = path
        self._known: dict[int, psutil.Process] = {}
        self._next_look = 0.0
        self._ended_at: float | None = None
        with contextlib.suppress(psutil.NoSuchProcess):
            self._known[pid] = psutil.Process(pid)
        self._write()

    def record(self) -> None:
        """Looks for new descendants, often at first, then every two seconds, and writes them down."""
        if (now := time.monotonic()) < self._next_look:
            return
        self._next_look = now + (0.2 if len(self._known) < 2 else 2.0)
        found = {process.pid: process for process in find_living(self._known.values())}
        if found.keys() - self._known.keys():
            self._known.update(found)
            self._write()

    def outlived(self, patience_s: float) -> bool:
        """Whether somebody still holds the output `patience_s` after the child itself has ended."""
        if self._ended_at is None:
            self._ended_at = time.monotonic()
        return time.monotonic() - self._ended_at > patience_s

    def stop(self, patience_s: float) -> None:
        """Ends whatever is alive. The file goes last: until then a later start can still find them."""
        stop_processes(self._known.values(), patience_s)
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        entries = []
        for process in self._known.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                entries.append({"pid": process.pid, "create_time": process.create_time()})
        write_json(self._path, {"processes": entries})


def _open_log(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise EnvironmentProblem(f"{path}: cannot be written: {error.strerror}") from error


def _start(argv: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
    except OSError as error:
        raise EnvironmentProblem(f"{argv[0]}: cannot be started in {cwd}: {error.strerror}") from error


def _read_lines(stream: IO[bytes], log: IO[str], lines: queue.SimpleQueue[str]) -> None:
    r"""Splits at \n and \r, so that each state of a progress bar is a line; a full disk ends the log, not the run."""
    pending = b""
    with stream, contextlib.suppress(ValueError):  # the log is closed under us when a descendant outlives the child
        while chunk := stream.read(1 << 16):
            *whole, pending = re.split(rb"[\r\n]+", pending + chunk)
            if _BAR_STATE.search(pending):
                whole, pending = [*whole, pending], b""
            _keep(whole, log, lines)
        _keep([pending], log, lines)


def _keep(raw: Sequence[bytes], log: IO[str], lines: queue.SimpleQueue[str]) -> None:
    decoded = [text for line in raw if (text := line.decode("utf-8", "backslashreplace").rstrip())]
    for text in decoded:
        lines.put(text)
    with contextlib.suppress(OSError):
        log.writelines(f"{text}\n" for text in decoded)
        log.flush()


def _hand_on(
    lines: queue.SimpleQueue[str], tail: collections.deque[str], on_line: Callable[[str], None], *, wait: bool = True
) -> None:
    """Passes on what has come; waits up to one poll for the first line."""
    with contextlib.suppress(queue.Empty):
        line = lines.get(timeout=_POLL_S) if wait else lines.get_nowait()
        while True:
            tail.append(line)
            on_line(line)
            line = lines.get_nowait()


def _failure(
    argv: Sequence[str], code: int | None, tail: Iterable[str], log_path: Path, why: str = ""
) -> TrainerFailed:
    lines = list(tail)
    status, cause = explain_failure(lines, code)
    detail = "\n".join([*last_words(lines, TAIL_LINES), "", f"log: {log_path}", f"command: {shlex.join(argv)}"])
    passing = not why and (status.startswith("killed by") or cause.startswith(GPU_FAILED))
    error = TrainerFailed(f"{why or status}: {cause}; log: {log_path}", detail=detail, passing=passing)
    error.code = code if code is not None and code > 0 else None
    return error
