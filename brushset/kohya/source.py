"""Where is sd-scripts, and which commit is it?

`SD_SCRIPTS_DIR` wins, then the submodule, then one attempt to initialise the submodule, bounded to seconds so that a
machine without GitHub loses no time. It is never imported: it runs as a child process, with its own folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from brushset.errors import EnvironmentProblem
from brushset.paths import PROJECT, SUBMODULE
from brushset.trees import stop_processes

PINNED_COMMIT = "ae72efb92babe89ff8e70f057e42db68440e8d61"
PINNED_VERSION = "v0.10.1"
SCRIPT = "train_network.py"
FETCH_LIMIT_S = 20.0
_HINT = "git submodule update --init vendor/sd-scripts, or set SD_SCRIPTS_DIR"


@dataclass(frozen=True)
class Source:
    """An sd-scripts on disk. `commit` is "unknown" where it is no git checkout; `note` says what is unusual, or is empty."""

    folder: Path
    commit: str
    note: str = ""

    @property
    def script(self) -> Path:
        return self.folder / SCRIPT


def find_source(*, fetch: bool = True, environ: Mapping[str, str] | None = None, project: Path = PROJECT) -> Source:
    """Finds sd-scripts.

    Args:
        fetch: whether the submodule may be initialised, which writes to the project and asks the network.
        environ: where SD_SCRIPTS_DIR is looked up; default the process's.
        project: the project's folder.

    Raises:
        EnvironmentProblem: it is not there; one line says why and what to do.
    """
    if chosen := (os.environ if environ is None else environ).get("SD_SCRIPTS_DIR"):
        folder = Path(chosen).expanduser().resolve()
        if not (folder / SCRIPT).is_file():
            raise EnvironmentProblem(f"SD_SCRIPTS_DIR = {chosen}: holds no {SCRIPT}; fix: point it at a checkout")
        return _describe(folder)
    folder = project / SUBMODULE.relative_to(PROJECT)
    if not (folder / SCRIPT).is_file():
        reason = _initialise(project, folder) if fetch else "the submodule is not initialised"
        if reason:
            raise EnvironmentProblem(f"sd-scripts is not there: {reason}; fix: {_HINT}")
    return _describe(folder)


def _describe(folder: Path) -> Source:
    code, said = _git(["-C", str(folder), "rev-parse", "--show-toplevel", "HEAD"], folder, limit_s=10.0)
    lines = said.split()
    if code or len(lines) != 2 or Path(lines[0]).resolve() != folder.resolve():
        return Source(folder, "unknown", f"{folder} is no git checkout: its version is not known")
    note = "" if lines[1] == PINNED_COMMIT else (
        f"sd-scripts is at {lines[1][:12]}, not at {PINNED_VERSION} ({PINNED_COMMIT[:12]}) that brushset is checked against"
    )  # fmt: skip
    return Source(folder, lines[1], note)


def _initialise(project: Path, folder: Path) -> str:
    """Tries to fetch the submodule; returns why it is still absent, or an empty string."""
    if not (project / ".git").exists() or not (project / ".gitmodules").is_file():
        return f"{project} is no git checkout with submodules"
    path = folder.relative_to(project).as_posix()
    code, said = _git(
        ["-C", str(project), "submodule", "update", "--init", "--depth", "1", path], project, limit_s=FETCH_LIMIT_S
    )
    if (folder / SCRIPT).is_file():
        return ""
    if code is None:
        return f"git submodule update took longer than {FETCH_LIMIT_S:g} s"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    fatal = [line.removeprefix("fatal: ") for line in lines if line.startswith("fatal: ")]
    told = (fatal or lines[-1:] or ["it fetched nothing"])[0]  # git's first complaint is the cause, the rest follows
    return f"git submodule update failed: {told}"


def _git(argv: Sequence[str], cwd: Path, *, limit_s: float) -> tuple[int | None, str]:
    """Runs git without questions; exit code and output, or None and what it said when it took too long."""
    program = shutil.which("git")
    if program is None:
        return 127, "git is not installed"
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "GIT_SSH_COMMAND": "ssh -oBatchMode=yes"}
    try:
        child = subprocess.Popen(
            [program, *argv], cwd=cwd, env=env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        return 127, f"git cannot be started: {error.strerror}"
    with child:  # which closes the pipe and waits
        try:
            said, _ = child.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                stop_processes([psutil.Process(child.pid)], patience_s=5.0)
    return child.returncode, said
