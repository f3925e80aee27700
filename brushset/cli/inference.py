"""`inference`: images from prompts with the newest adapters, on the base model that they were trained on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.bases.resolve import resolve_base
from brushset.cli.devices import see_only
from brushset.cli.guard import listen, stdout
from brushset.cli.options import Options
from brushset.errors import UsageError
from brushset.files import write_json
from brushset.load import load_style
from brushset.paths import RunPaths, RunsDir
from brushset.pipeline import load_record
from brushset.records import Trained
from brushset.spec import StyleSpec

if TYPE_CHECKING:
    from brushset.generator import MultiLoRAGenerator

Mix = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class InferenceRequest:
    """What is to be drawn."""

    prompts: tuple[str, ...]
    loras: tuple[str, ...] = ()
    num_images: int = 1
    steps: int | None = None
    guidance: float | None = None
    out: Path | None = None


@dataclass(frozen=True)
class TrainedStyle:
    """A style's newest trained run."""

    run: RunPaths
    spec: StyleSpec
    trained: Trained


def infer(options: Options, request: InferenceRequest) -> None:
    """Draws every prompt with every mix, and saves PNGs with an images.json that says what each is.

    Raises:
        UsageError: a style that is not trained, or styles that were trained on different base models.
    """
    from brushset.generator import MultiLoRAGenerator

    see_only(options.gpus)
    runs = RunsDir(options.runs_dir.absolute())
    mixes = [parse_mix(request.loras)] if request.loras else []
    asked = [] if "all" in options.style else options.style
    names = [name for mix in mixes for name, _ in mix] or asked or runs.styles()
    styles = {name: trained_style(runs, name) for name in names}
    if not styles:
        raise UsageError(f"{options.runs_dir}: nothing is trained yet; fix: orchestrate.py --style NAME")
    _require_one_base(styles)
    first = next(iter(styles.values()))
    events, listener = listen(options, 1)
    try:
        base = resolve_base(options.base_model or first.spec.base.model, first.spec.base.revision, events)
        generator = MultiLoRAGenerator(base, emit=events)
        for name, style in styles.items():
            generator.load_lora(style.run.root / style.trained.weights, name)
        folder = request.out or runs.root / "_inference" / dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        seed = first.spec.train.seed if options.seed is None else options.seed
        mixes = mixes or [((name, style.spec.evaluate.weight),) for name, style in styles.items()]
        rows = [
            row
            for number, prompt in enumerate(request.prompts)
            for mix in mixes
            for row in _draw(generator, Drawing(folder, number, prompt, mix, seed), styles, request)
        ]
        write_json(folder / "images.json", {"base": base.name, "base_random": base.random, "images": rows})
        if base.random:
            events("warning", text="the base model is made of random numbers: the images are noise, and prove nothing")
    finally:
        if listener is not None:
            listener.close()
    if not options.json:
        stdout.print(f"{len(rows)} images in {folder}", markup=False)


@dataclass(frozen=True)
class Drawing:
    """One prompt with one mix."""

    folder: Path
    number: int
    prompt: str
    mix: Mix
    seed: int


def _draw(
    generator: MultiLoRAGenerator, drawing: Drawing, styles: Mapping[str, TrainedStyle], request: InferenceRequest
) -> list[dict[str, object]]:
    """Draws and saves; returns a row an image."""
    spec = styles[drawing.mix[0][0]].spec
    settings = spec.evaluate
    worded = with_triggers(drawing.prompt, [styles[name].spec.trigger for name, _ in drawing.mix])
    images = generator.generate(
        worded,
        lora_configs=drawing.mix,
        num_images=request.num_images,
        seed=drawing.seed,
        negative_prompt=settings.negative_prompt,
        steps=request.steps or settings.steps,
        guidance=request.guidance or settings.guidance,
        width=settings.width,
        height=settings.height,
        batch_size=settings.batch_size,
        clip_skip=spec.train.clip_skip,
    )
    drawing.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for seed, image in enumerate(images, drawing.seed):
        name = f"{drawing.number:02d}_{'+'.join(name for name, _ in drawing.mix)}_{seed}.png"
        image.save(drawing.folder / name)
        rows.append({"file": name, "prompt": worded, "mix": dict(drawing.mix), "seed": seed})
    return rows


def _require_one_base(styles: Mapping[str, TrainedStyle]) -> None:
    bases = {name: style.trained.base_sha256 for name, style in styles.items()}
    if len(set(bases.values())) > 1:
        listed = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in bases.items())
        raise UsageError(
            f"these styles were trained on different base models ({listed}); fix: name styles of one with --style"
        )


def parse_mix(texts: Sequence[str]) -> Mix:
    """`["anime:0.6", "watercolor"]` → (("anime", 0.6), ("watercolor", 1.0))."""
    mix = []
    for text in texts:
        name, colon, weight = text.partition(":")
        try:
            mix.append((name, float(weight) if colon else 1.0))
        except ValueError as error:
            raise UsageError(f"--loras {text}: expected STYLE or STYLE:WEIGHT, such as anime:0.6") from error
    return tuple(mix)


def trained_style(runs: RunsDir, name: str) -> TrainedStyle:
    """The newest run of a style that has trained weights.

    Raises:
        UsageError: there is none.
    """
    newest = [run for run in (runs.latest(name), *reversed(runs.runs_of(name))) if run is not None]
    for run in newest:
        if record := load_record(run, "train"):
            return TrainedStyle(run, load_style(run.spec), Trained.model_validate(record.data))
    raise UsageError(f"{runs.root / name}: nothing is trained yet; fix: orchestrate.py --style {name}")


def with_triggers(prompt: str, triggers: Sequence[str]) -> str:
    """The prompt with every trigger that it lacks put in front."""
    missing = [trigger for trigger in triggers if trigger not in prompt]
    return ", ".join([*missing, prompt])
