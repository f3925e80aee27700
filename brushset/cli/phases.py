"""Where a command's wall time went, by stage, over all its styles: what several do at the same time counts once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

import psutil

Span = tuple[float, float]
_LEAST_S = 0.05  # less is not worth a word


class PhaseTimes:
    """Listens to a command's events. The clock runs from the start of the process: imports are waited for too."""

    def __init__(self) -> None:
        self._started = psutil.Process().create_time()
        self._first_run: float | None = None
        self._stages: dict[str, list[Span]] = defaultdict(list)
        self._parts: dict[str, list[Span]] = defaultdict(list)
        self._files = 0

    def __call__(self, event: str, fields: Mapping[str, object]) -> None:
        """Notes what an event says of time."""
        now = time.time()
        if event == "run_start" and self._first_run is None:
            self._first_run = now
        elif event == "stage_end":
            self._stages[str(fields["stage"])].append((now - float(str(fields["seconds"])), now))
            self._files += fields["stage"] == "train"
        elif event == "phase":
            self._parts[str(fields["what"])].append((now - float(str(fields["seconds"])), now))

    def seconds(self) -> dict[str, float]:
        """Wall seconds by name: `total`, `to_files` where something was trained, `start-up`, each stage, and each part of
        training as `train: part`. Empty where no stage had anything to do.
        """
        if not self._stages or self._first_run is None:
            return {}
        now = time.time()
        stages = {name: _covered(spans) for name, spans in self._stages.items()}
        found = {"total": now - self._started}
        if "train" in self._stages:
            found["to_files"] = max(end for _, end in self._stages["train"]) - self._started
        found |= {"start-up": self._first_run - self._started, **stages}
        found |= {f"train: {name}": _covered(spans) for name, spans in self._parts.items()}
        return {name: round(value, 2) for name, value in found.items()}

    def line(self) -> str:
        """What `seconds` says, for people; empty where there is nothing to say."""
        found = self.seconds()
        if not found:
            return ""
        parts = [
            f"{name.removeprefix('train: ')} {value:.1f}" for name, value in found.items() if name.startswith("train: ")
        ]
        stages = {name: value for name, value in found.items() if name not in {"total", "to_files"} and ":" not in name}
        stages["other"] = found["total"] - sum(stages.values())
        told = [
            f"{name} {value:.1f}" + (f" ({', '.join(parts)})" if name == "train" and parts else "")
            for name, value in stages.items()
            if value >= _LEAST_S
        ]
        files = (
            f"folder to {self._files} file{'s' * (self._files > 1)} {found['to_files']:.1f} s, " if self._files else ""
        )
        return f"{files}command {found['total']:.1f} s: {' · '.join(told)}"


def _covered(spans: Iterable[Span]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
