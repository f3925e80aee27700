"""`inference --replay`: images made again from what they say of themselves, and compared with what they are."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.bases.resolve import resolve_base
from brushset.cli.devices import see_only
from brushset.cli.guard import listen, print_event, stdout
from brushset.cli.inference.adapters import Adapter, adapter_at, read_adapters
from brushset.cli.inference.findings import collecting, refuse
from brushset.cli.inference.pictures import KEY, LIST, Folder, Making, read_manifest
from brushset.cli.inference.request import InferenceRequest, Machine, read_precision
from brushset.cli.inference.run import load, precision_of
from brushset.cli.options import Options
from brushset.errors import BrushsetError, UsageError
from brushset.files import read_json, sha256_file, shown
from brushset.infotext import KEY as PARAMETERS
from brushset.lora.adapter import adapter_files
from brushset.paths import RunsDir
from brushset.protocols import Emit
from brushset.records import BaseFile

if TYPE_CHECKING:
    from PIL.Image import Image

    from brushset.generator import ImageJob, Sampling

_SAMPLING = ("steps", "guidance", "width", "height", "scheduler", "clip_skip")


@dataclass(frozen=True)
class Original:
    """An image that is to be made again."""

    file: Path
    told: Mapping[str, Any]


def replay_images(options: Options, files: Sequence[Path], request: InferenceRequest) -> None:
    """Makes images again and says whether they are the same; the new ones are saved too.

    Raises:
        UsageError: a PNG that does not say how it was made, an adapter or base that is not to be found.
    """
    see_only(options.gpus)
    runs = RunsDir(options.runs_dir.absolute())
    originals = _read(files)
    adapters = _find_adapters(originals, read_adapters(request.loras, runs), runs)
    precision = request.machine.precision or precision_of(originals[0].told["dtype"])
    folder = Folder(request.out or runs.root / "_inference" / dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S"))
    events, listener = listen(options, 1)
    try:
        base = _find_base(options, originals, events)
        dtype = read_precision(Machine(precision=precision))
        generator = load(base, list(adapters.values()), dtype, compiled=request.machine.compile, emit=events)
        rows = []
        for sampling, group in _by_sampling(originals, options.batch_size):
            making = Making(
                base,
                sampling,
                {each.name: each for each in adapters.values()},
                generator.device,
                originals[0].told["dtype"],
            )
            jobs = [_job(original, adapters) for original in group]
            for index, image in generator.generate_jobs(jobs, sampling):
                rows.append(_compare(group[index], image, making, jobs[index], folder))
    finally:
        if listener is not None:
            listener.close()
    for row in sorted(rows, key=lambda row: [shown(file) for file in files].index(row["original"])):
        if options.json:
            print_event("replay", row)
        else:
            stdout.print(f"{row['original']}: {row['finding']}  →  {row['file']}", markup=False)


def difference(original: Image, again: Image) -> str:
    """How two images differ, for people."""
    import numpy as np

    if original.size != again.size:
        return f"differs: {original.width}x{original.height}, now {again.width}x{again.height}"
    before, after = (np.asarray(each.convert("RGB"), dtype=np.int16) for each in (original, again))
    gap = np.abs(before - after)
    if not gap.any():
        return "the same, every pixel"
    return f"differs: in {(gap.max(axis=2) > 0).mean():.1%} of the pixels, by {int(gap.max())} of 255 at most"


def _read(files: Sequence[Path]) -> list[Original]:
    found: list[Original] = []
    findings: list[str] = []
    for file in files:
        with collecting(findings):
            told = read_manifest(file)
            _require(told, file)
            found.append(Original(file, told))
    findings += [
        f"--replay: the images were made on several {key}s; fix: name those of one"
        for key in ("base", "dtype")
        if len({json.dumps(each.told[key]) for each in found}) > 1
    ]
    refuse(findings)
    return found


def _require(told: Mapping[str, Any], file: Path) -> None:
    wanted = ("prompt", "negative_prompt", "seed", *_SAMPLING, "method", "options", "base", "adapters", "dtype")
    if missing := [key for key in wanted if key not in told]:
        raise UsageError(f"{shown(file)}: its text lacks {', '.join(missing)}, so it cannot be made again")


def _find_adapters(originals: Sequence[Original], given: Sequence[Adapter], runs: RunsDir) -> dict[str, Adapter]:
    """SHA-256 → the adapter: named with --loras, where it lay then, or in any run of its style.

    Raises:
        UsageError: all that are not to be found.
    """
    found = {adapter.sha256: adapter for adapter in given}
    findings: dict[str, None] = {}
    for original in originals:
        for told in original.told["adapters"]:
            if told["sha256"] in found:
                continue
            path = next((path for path in _places(original, told, runs) if _is_file(path, told["sha256"])), None)
            if path is None:
                findings[
                    f"{shown(original.file)}: its adapter {told['name']} (sha256 {told['sha256'][:12]}) is not where it "
                    "was; fix: name the file with --loras"
                ] = None
                continue
            name, taken = told["name"], {adapter.name for adapter in found.values()}
            unique = name if name not in taken else f"{name}-{told['sha256'][:8]}"
            found[told["sha256"]] = adapter_at(unique, path)
    if findings:
        raise UsageError.of_many(list(findings))
    return found


def _places(original: Original, told: Mapping[str, Any], runs: RunsDir) -> Iterator[Path]:
    listed = _listed(original.file)
    if path := listed.get("adapters", {}).get(told["name"], {}).get("path"):
        yield Path(path)
    style = str(told.get("style", ""))
    for run in reversed(runs.runs_of(style)) if style in runs.styles() else ():
        yield from sorted(run.weights.glob("*.safetensors"))


def _listed(file: Path) -> dict[str, Any]:
    """The images.json beside an image; empty where there is none that can be read."""
    try:
        found = read_json(file.parent / LIST)
    except BrushsetError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_file(path: Path, sha256: str) -> bool:
    try:
        return sha256_file(adapter_files(path)[0]) == sha256
    except (BrushsetError, OSError):
        return False


def _find_base(options: Options, originals: Sequence[Original], emit: Emit) -> BaseFile:
    told = originals[0].told["base"]
    listed = _listed(originals[0].file)
    model = options.base_model or (str(listed["base"]) if listed.get("base_sha256") == told["sha256"] else told["name"])
    base = resolve_base(model, None, emit)
    if base.sha256 != told["sha256"]:
        raise UsageError(
            f"{shown(originals[0].file)}: was made on {told['name']} (sha256 {told['sha256'][:12]}), and {base.name} is "
            f"another ({base.sha256[:12]}); fix: --base-model with that one"
        )
    return base


def _by_sampling(originals: Sequence[Original], batch_size: int | None) -> list[tuple[Sampling, list[Original]]]:
    from brushset.generator import Sampling

    groups: dict[Sampling, list[Original]] = {}
    for original in originals:
        sampling = Sampling(**{key: original.told[key] for key in _SAMPLING})
        groups.setdefault(replace(sampling, batch_size=batch_size or sampling.batch_size), []).append(original)
    return list(groups.items())


def _job(original: Original, adapters: Mapping[str, Adapter]) -> ImageJob:
    from brushset.generator import ImageJob
    from brushset.lora.compose import Options as ComposeOptions

    told = original.told
    mix = [(adapters[each["sha256"]].name, each["weight"]) for each in told["adapters"]]
    options = ComposeOptions(**told["options"])
    return ImageJob(told["prompt"], told["seed"], mix, told["negative_prompt"], told["method"], options)


def _compare(original: Original, image: Image, making: Making, job: ImageJob, folder: Folder) -> dict[str, Any]:
    from PIL import Image as Images

    with Images.open(original.file) as before:
        finding = difference(before, image)
    text = {PARAMETERS: making.parameters(job), KEY: json.dumps(making.manifest(job))}
    file = folder.save(image, 0, ("again", job.seed), text)
    return {"original": shown(original.file), "finding": finding, "file": shown(file)}
