"""What would a service take that trains the styles of 10,000 users a day? A simulation of a day; see docs/scaling.md.

    python bench/service.py                                  # GPUs, waits, GPU seconds by phase, storage, cost a LoRA
    python bench/service.py --pack 1                         # every style by itself
    python bench/service.py --packed-rate 80 --gpus 16 --gpu-hour 2.5

Styles come by a Poisson stream that swells and ebbs over the day. A warm worker (models loaded, one a GPU) takes up to
`--pack` of those that wait, longest wait first, and trains them in one pass; audit and preparation are the CPU's. A worker
may be lost at any time (`--losses` an hour): its styles go back to the queue's head, with what their last state holds.

Every rate is an argument, since none of them was measured on a GPU yet: the defaults are estimates, each with its source
in `--help`. What the machine does not know it does not guess: nothing here predicts how good a LoRA is.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import statistics
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

DAY_S = 86_400.0
HOUR_S = 3_600.0
SETTLES_S = 2 * HOUR_S
"""Before the day that is counted: an empty service would flatter it."""


@dataclass(frozen=True)
class Assumptions:
    """Rates are images a second of one GPU, sizes MB, times seconds."""

    styles: float
    peak: float
    images: float
    spread: float
    samples: int
    pack: int
    single_rate: float
    packed_rate: float
    shared: float
    caption_rate: float
    encode_rate: float
    eval_images: int
    eval_rate: float
    score_rate: float
    start_s: float
    style_s: float
    state_s: float
    losses: float
    recovery_s: float
    gpu_hour: float
    lora_mb: float
    epochs_kept: int
    image_mb: float
    store_month: float
    kept_months: float


@dataclass
class Job:
    """One user's style; `left` are samples that are still to be trained."""

    came: float
    images: int
    left: float
    prepared: bool = False


@dataclass(frozen=True)
class Pass:
    """Styles that a worker trains together from `begun` on; `dies` where the worker is lost before it is through."""

    begun: float
    jobs: list[Job]
    phases: dict[str, float]
    dies: bool


@dataclass
class Day:
    """What happened: waits and times to the files in seconds, GPU seconds by phase."""

    gpus: int
    waits: list[float]
    totals: list[float]
    phases: defaultdict[str, float]
    passes: int
    lost: int
    unfinished: int

    @property
    def done(self) -> int:
        return len(self.totals)

    @property
    def busy(self) -> float:
        """Share of the GPUs' time."""
        return sum(self.phases.values()) / (self.gpus * DAY_S)


def arrivals(assumed: Assumptions, rng: random.Random) -> Iterator[Job]:
    """A Poisson stream by thinning: rate = mean · (1 + (peak − 1) · cos), so the busiest moment has `peak` times the mean."""
    mean, most = assumed.styles / DAY_S, assumed.styles * assumed.peak / DAY_S
    now = -SETTLES_S
    while True:
        now += rng.expovariate(most)
        if now >= DAY_S:
            return
        swell = 1 - (assumed.peak - 1) * math.cos(2 * math.pi * now / DAY_S)
        if rng.random() * most <= mean * swell:
            images = max(8, round(assumed.images * math.exp(rng.gauss(0.0, assumed.spread))))
            yield Job(now, images, float(assumed.samples))


def service_s(jobs: Sequence[Job], assumed: Assumptions) -> dict[str, float]:
    """GPU seconds of one pass by phase. Of a pass's samples the share `shared` goes at the packed rate, the rest alone;
    packed styles end with the last of them, since they go side by side.
    """
    fresh = [job for job in jobs if not job.prepared]
    samples = sum(job.left for job in jobs)
    shared = assumed.shared if len(jobs) > 1 else 0.0
    gain = 1 - 1 / len(jobs)  # of two styles half of what three and more gain, about
    packed_rate = assumed.single_rate + (assumed.packed_rate - assumed.single_rate) * min(1.0, gain / (2 / 3))
    return {
        "captions": sum(job.images for job in fresh) / assumed.caption_rate,
        "latents": sum(job.images for job in jobs) / assumed.encode_rate,
        "training": samples * (shared / packed_rate + (1 - shared) / assumed.single_rate),
        "evaluation": len(jobs) * assumed.eval_images * (1 / assumed.eval_rate + 1 / assumed.score_rate),
        "files, start": assumed.start_s + len(jobs) * assumed.style_s,
    }


def simulate(assumed: Assumptions, gpus: int, seed: int = 1) -> Day:
    """A day of so many GPUs."""
    rng = random.Random(seed)  # of losses: styles come the same whatever is lost
    waiting: deque[Job] = deque()
    coming = arrivals(assumed, random.Random(f"styles/{seed}"))
    upcoming = next(coming, None)
    ends: list[tuple[float, int, Pass]] = []
    free, number = gpus, 0
    day = Day(gpus, [], [], defaultdict(float), 0, 0, 0)
    while upcoming or ends:
        if upcoming and (not ends or upcoming.came <= ends[0][0]):
            now = upcoming.came
            waiting.append(upcoming)
            upcoming = next(coming, None)
        else:
            now, _, ended = heapq.heappop(ends)
            free += 1
            _settle(day, now, ended, assumed)
            if ended.dies:
                waiting.extendleft(reversed(ended.jobs))
                day.lost += ended.begun >= 0
        if now >= DAY_S:
            continue  # what comes and begins later is not of this day
        while free and waiting:
            jobs = [waiting.popleft() for _ in range(min(assumed.pack, len(waiting)))]
            phases = service_s(jobs, assumed)
            whole, dies = sum(phases.values()), rng.expovariate(assumed.losses / HOUR_S) if assumed.losses else math.inf
            number += 1
            free -= 1
            day.passes += now >= 0
            if now >= 0:
                day.waits += [now - job.came for job in jobs if not job.prepared]
            after = min(whole, dies) + (assumed.recovery_s if dies < whole else 0.0)
            heapq.heappush(ends, (now + after, number, Pass(now, jobs, phases, dies < whole)))
    day.unfinished = len(waiting)
    return day


def _settle(day: Day, now: float, ended: Pass, assumed: Assumptions) -> None:
    """Books a pass that has ended. One that was lost has trained up to its last state."""
    counted, phases = ended.begun >= 0, ended.phases
    if not ended.dies:
        if counted:
            for name, seconds in phases.items():
                day.phases[name] += seconds
            day.totals += [now - job.came for job in ended.jobs]
        return
    ran = now - ended.begun - assumed.recovery_s
    before = sum(seconds for name, seconds in phases.items() if name in {"captions", "latents", "files, start"})
    trained = min(phases["training"], max(0.0, ran - before))
    kept = trained if trained == phases["training"] else math.floor(trained / assumed.state_s) * assumed.state_s
    for job in ended.jobs:
        job.prepared = job.prepared or ran >= before
        job.left *= 1 - kept / phases["training"] if phases["training"] else 1.0
    if counted:
        day.phases["lost"] += ran - kept
        day.phases["training"] += kept


def fewest_gpus(assumed: Assumptions, most_wait_s: float) -> Day:
    """The fewest GPUs with which 95 % of the styles begin within `most_wait_s`."""
    usual = Job(0.0, round(assumed.images), float(assumed.samples))
    busy = assumed.styles / DAY_S * sum(service_s([usual] * assumed.pack, assumed).values()) / assumed.pack
    gpus = max(1, math.floor(busy / 2))
    while True:
        day = simulate(assumed, gpus)
        if day.waits and not day.unfinished and quantile(day.waits, 0.95) <= most_wait_s:
            return day
        gpus += max(1, gpus // 20)


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values the one at this share."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def figures(day: Day, assumed: Assumptions) -> dict[str, float]:
    """What the day took; $ and seconds a style are of those finished."""
    stored = assumed.epochs_kept * assumed.lora_mb + assumed.images * assumed.image_mb
    gpu_cost = day.gpus * 24 * assumed.gpu_hour / day.done
    disk_cost = stored / 1e3 * assumed.store_month * assumed.kept_months
    return {
        "styles": day.done, "gpus": day.gpus, "busy": day.busy, "styles_a_pass": day.done / max(1, day.passes - day.lost),
        "wait_median_s": statistics.median(day.waits), "wait_95_s": quantile(day.waits, 0.95),
        "total_median_s": statistics.median(day.totals), "total_95_s": quantile(day.totals, 0.95),
        "gpu_s_a_style": sum(day.phases.values()) / day.done, "lost_passes": day.lost, "unfinished": day.unfinished,
        "stored_gb_a_day": stored * day.done / 1e3, "gpu_cost": gpu_cost, "disk_cost": disk_cost,
        **{f"gpu_s {name}": seconds / day.done for name, seconds in day.phases.items()},
    }  # fmt: skip


def show(found: dict[str, float], assumed: Assumptions) -> None:
    """Prints it."""
    console, whole = Console(width=110), found["gpu_s_a_style"]
    table = Table("phase", "GPU s a style", "share")
    phases = {name.removeprefix("gpu_s "): seconds for name, seconds in found.items() if name.startswith("gpu_s ")}
    for name, seconds in sorted(phases.items(), key=lambda each: -each[1]):
        table.add_row(name, f"{seconds:.1f}", f"{seconds / whole:.0%}")
    console.print(table)
    console.print(
        f"{found['styles']:.0f} styles on {found['gpus']:.0f} GPUs, {found['busy']:.0%} busy, {found['styles_a_pass']:.1f} a "
        f"pass, {found['lost_passes']:.0f} passes lost, {found['unfinished']:.0f} styles not begun.\n"
        f"Wait {found['wait_median_s']:.0f} s, 95 % within {found['wait_95_s']:.0f} s; to the files "
        f"{found['total_median_s']:.0f} s, 95 % within {found['total_95_s']:.0f} s.\n"
        f"Stored {found['stored_gb_a_day']:.0f} GB a day. A style: GPU $ {found['gpu_cost']:.3f}, disk $ "
        f"{found['disk_cost']:.3f} for {assumed.kept_months:g} months.",
        markup=False,
    )


OPTIONS: tuple[tuple[str, type, float, str], ...] = (
    ("styles", float, 10_000, "a day"),
    ("peak", float, 2.0, "busiest moment by the mean, at most 2"),
    ("images", float, 100, "of a style, the median; 80-100 are advised"),
    ("spread", float, 0.5, "of the images' logarithm: 0.5 puts two thirds between 60 and 165"),
    ("samples", int, 4_000, "trained a style: [train] target_steps 1000 × batch 4"),
    ("pack", int, 8, "styles of one pass at most"),
    ("single-rate", float, 90.0, "trained images/s of one style at batch 4; estimated 60-110, facts of 2026-11"),
    ("packed-rate", float, 170.0, "of three styles and more in a pass; estimated 140-200; the limit is 440"),
    ("shared", float, 0.41, "of the batches that go with others of their shape, counted on three real sets; 1: one shape"),
    ("caption-rate", float, 20.0, "captioned images/s, BLIP large at batch 32; estimated"),
    ("encode-rate", float, 150.0, "encoded images/s, VAE at 512 px; 1.12 TFLOP each, estimated"),
    ("eval-images", int, 900, "generated to choose and to judge"),
    ("eval-rate", float, 7.0, "images/s of 25 steps; estimated 6-9"),
    ("score-rate", float, 60.0, "images/s through CLIP, CSD, DINOv2, Inception; estimated"),
    ("start-s", float, 3.0, "of a pass on a warm worker"),
    ("style-s", float, 4.0, "of a style: conversion, packages, report, files"),
    ("state-s", float, 300.0, "between states: [train] save_state_minutes"),
    ("losses", float, 0.02, "of a worker an hour: a spot machine about every two days"),
    ("recovery-s", float, 180.0, "until a lost worker is back, models loaded"),
    ("gpu-hour", float, 3.0, "$ an hour of a GPU"),
    ("lora-mb", float, 38.0, "rank 32 in bf16, measured"),
    ("epochs-kept", int, 3, "files kept of a style"),
    ("image-mb", float, 0.35, "a prepared image, measured 0.1 to 0.5"),
    ("store-month", float, 0.023, "$ a GB and month"),
    ("kept-months", float, 12.0, "that a style is kept"),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Simulates, prints, returns the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind, default, what in OPTIONS:
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{what} (default %(default)s)")
    parser.add_argument("--gpus", type=int, help="default: the fewest that keep to --wait")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds within which 95 %% shall begin")
    parser.add_argument("--json", action="store_true", help="the figures alone, as JSON")
    asked = vars(parser.parse_args(argv))
    gpus, wait, as_json = asked.pop("gpus"), asked.pop("wait"), asked.pop("json")
    if not 1 <= asked["peak"] <= 2:
        parser.error("--peak is between 1 and 2")
    assumed = Assumptions(**asked)
    day = simulate(assumed, gpus) if gpus else fewest_gpus(assumed, wait)
    if not day.totals:
        parser.error("no style was finished; fix: more --gpus")
    found = figures(day, assumed)
    if as_json:
        print(json.dumps(found))
    else:
        show(found, assumed)
    return found


if __name__ == "__main__":
    main()
