"""What can go wrong, and the exit code of each.

    BrushsetError                 1   a bug of ours, or an error nobody foresaw
    ├── UsageError                2   a wrong option, style file or combination of settings
    ├── InputError                3   images or captions that cannot be trained on
    ├── EnvironmentProblem        4   a model, device, disk, permission or package that is not there
    ├── TrainerFailed             5   the trainer died, or trained nothing
    ├── VerificationFailed        6   an output is there, and is wrong
    ├── PartlyFailed              7   of several runs not all went well; the others are done
    ├── StyleLocked              75   another run of this style is at work
    └── RunTaken                 75   another process works on this run
    BaseException
    └── Interrupted         130/143   Ctrl-C, or SIGTERM; no Exception, which a library on the way might swallow

A message is one line that names the file, the value and the fix; what belongs in a log goes to `detail`.
Several findings of one kind are collected into one error, a line each (`UsageError.of_many`).
"""

from __future__ import annotations

import signal
from collections.abc import Sequence


class BrushsetError(Exception):
    """Base of all errors that the front door turns into one line and an exit code. `passing` says that the machine is to
    blame, not what was asked of it: the same command may go well later, or elsewhere.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, detail: str = "", passing: bool = False) -> None:
        super().__init__(message)
        self.detail, self.passing = detail, passing

    @classmethod
    def of_many(cls, findings: Sequence[str]) -> BrushsetError:
        """One error that states every finding, a line each, so that nobody fixes them one run at a time."""
        return cls("\n".join(findings))


class UsageError(BrushsetError):
    """A wrong option, style file or combination of settings."""

    exit_code = 2


class InputError(BrushsetError):
    """Images or captions that cannot be trained on."""

    exit_code = 3


class EnvironmentProblem(BrushsetError):
    """A model, device, disk, permission or package that is not there."""

    exit_code = 4


class TrainerFailed(BrushsetError):
    """The trainer died, or ended without training what was asked. `code` is what the process
    itself ended with, None where it was stopped or killed.
    """

    exit_code = 5
    code: int | None = None


class VerificationFailed(BrushsetError):
    """An output is there, and is wrong."""

    exit_code = 6


class PartlyFailed(BrushsetError):
    """Of a sweep or a queue not all went well; the others are done, and the same command does the rest."""

    exit_code = 7


class StyleLocked(BrushsetError):
    """Another run of this style is at work."""

    exit_code = 75


class RunTaken(BrushsetError):
    """Another process works on this run, or has taken it over."""

    exit_code = 75


class Interrupted(BaseException):
    """The user or the system asked us to stop; the exit code is the shell's 128 + signal number.

    diffusers' lazy imports turn every Exception into a RuntimeError: as one of those, a Ctrl-C in the seconds of
    loading would be told as a broken model. Nor a KeyboardInterrupt, which the command-line library takes for its own.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command goes on from here")
        self.exit_code = 128 + signum
