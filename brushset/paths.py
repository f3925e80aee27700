"""Where everything lies: the only code that knows the layout of `runs/`, of the project and of the user's cache.

runs/<style>/<run-id>/
  run.json    manifest              spec.toml   the resolved spec
  workers.jsonl  who works on it and who did, and how each ended
  records/    one JSON a stage      audit/      what the audit found
  images/     prepared + captions   config/     dataset.toml, training.toml, command.json
  logs/       train.log, tensorboard/, events.jsonl
  attempts/   an unfinished training: states to go on from
  weights/    <style>.safetensors and the epochs kept
  adapter/    the diffusers form    eval/       scores, images, grids
  export/     a1111/, comfyui/      report.html, report.json
"""

from __future__ import annotations

import os
import platform
import zlib
from dataclasses import dataclass
from pathlib import Path

import platformdirs

PROJECT = Path(__file__).resolve().parent.parent
STYLES = PROJECT / "styles"
PROFILES = STYLES / "profiles"
DATASET_CONFIGS = PROJECT / "dataset_configs"
SUBMODULE = PROJECT / "vendor" / "sd-scripts"


def cache_dir() -> Path:
    """The user's cache: models made or fetched, demo images, hashes. `BRUSHSET_CACHE` moves it."""
    chosen = os.environ.get("BRUSHSET_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("brushset")


@dataclass(frozen=True)
class RunPaths:
    """Every path in one run folder. `root` is the folder; nothing here touches the disk."""

    root: Path

    @property
    def run_id(self) -> str:
        return self.root.name

    @property
    def style(self) -> str:
        return self.root.parent.name

    @property
    def manifest(self) -> Path:
        return self.root / "run.json"

    @property
    def spec(self) -> Path:
        return self.root / "spec.toml"

    @property
    def workers(self) -> Path:
        return self.root / "workers.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def audit(self) -> Path:
        return self.root / "audit"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def heldout(self) -> Path:
        """Prepared images that are never trained on; sd-scripts does not look into folders of its folder."""
        return self.images / "heldout"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def dataset_toml(self) -> Path:
        return self.config / "dataset.toml"

    @property
    def training_toml(self) -> Path:
        return self.config / "training.toml"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def events(self) -> Path:
        return self.logs / "events.jsonl"

    @property
    def train_log(self) -> Path:
        return self.logs / "train.log"

    def worker_log(self, number: int) -> Path:
        """What the `number`-th process that an executor started on this run said."""
        return self.logs / f"worker-{number}.log"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def eval(self) -> Path:
        return self.root / "eval"

    @property
    def export(self) -> Path:
        return self.root / "export"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def report_json(self) -> Path:
        """What the report claims, for machines."""
        return self.root / "report.json"

    @property
    def place_values(self) -> Path:
        """What evaluation measured of each image."""
        return self.eval / "values.json"

    def record(self, stage: str) -> Path:
        return self.root / "records" / f"{stage}.json"

    def workdir(self, stage: str) -> Path:
        """The temporary neighbour into which a stage writes before its output is published. Two machines may share the
        folder, and ids of processes.
        """
        return self.root / f".tmp-{stage}-{zlib.crc32(platform.node().encode()):08x}-{os.getpid()}"


@dataclass(frozen=True)
class RunsDir:
    """The folder that holds all runs of all styles."""

    root: Path

    def style(self, style: str) -> Path:
        return self.root / style

    @property
    def report(self) -> Path:
        """The page of all styles together."""
        return self.root / "report.html"

    @property
    def report_json(self) -> Path:
        return self.root / "report.json"

    def lock(self, style: str) -> Path:
        return self.root / style / ".lock"

    def submission(self, name: str) -> Path:
        """What a batch system was handed together: the list of runs, the script, what the jobs say before a run begins."""
        return self.root / ".submissions" / name

    def sweep(self, name: str) -> Path:
        """What belongs to a sweep as a whole: sweep.json, its report."""
        return self.root / "sweeps" / name

    @property
    def queue(self) -> Path:
        """Commands that wait, a file each."""
        return self.root / ".queue"

    def child_log(self, style: str) -> Path:
        """What a style's process said when several styles were trained at once."""
        return self.root / style / "parallel.log"

    def run(self, style: str, run_id: str) -> RunPaths:
        return RunPaths(self.root / style / run_id)

    def runs_of(self, style: str) -> list[RunPaths]:
        """All runs of a style that have a manifest, oldest first."""
        folder = self.style(style)
        if not folder.is_dir():
            return []
        found = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
        return [RunPaths(path) for path in sorted(found) if (path / "run.json").is_file()]

    def styles(self) -> list[str]:
        """Names of the styles that have runs."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and self.runs_of(path.name))

    def latest(self, style: str) -> RunPaths | None:
        """The run that `latest` points to, else the newest."""
        link = self.style(style) / "latest"
        if link.is_symlink() and (link / "run.json").is_file():
            return self.run(style, link.readlink().name)
        runs = self.runs_of(style)
        return runs[-1] if runs else None

    def point_latest(self, run: RunPaths) -> None:
        """Points `runs/<style>/latest` at `run`, atomically; where links cannot be made the newest run serves."""
        link = run.root.parent / "latest"
        temporary = run.root.parent / f".latest-{os.getpid()}"
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(run.run_id, target_is_directory=True)
            temporary.replace(link)
        except OSError:
            temporary.unlink(missing_ok=True)
