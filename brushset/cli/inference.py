"""`inference`: images from prompts with the newest adapters, on the base model that they were trained on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brushset.bases.resolve import resolve_base
from brushset.cli.guard import listen, stdout
from brushset.cli.options import Options
from brushset.errors import UsageError
from brushset.files import write_json
from brushset.load import load_style
from brushset.paths import RunPaths, RunsDir
from brushset.pipeline import load_record
from brushset.records import Trained
from brushset.spec import StyleSpec

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
    """Draws every prompt with every mix, and saves PNGs with a JSON that says what each is."""
    from brushset.generator import MultiLoRAGenerator

    runs = RunsDir(options.runs_dir.absolute())
    mixes = [parse_mix(request.loras)] if request.loras else []
    names = [name for mix in mixes for name, _ in mix] or options.style or runs.styles()
    styles = {name: trained_style(runs, name) for name in names}
    if not styles:
        raise UsageError(f"{options.runs_dir}: nothing is trained yet; fix: orchestrate.py --style NAME")
    mixes = mixes or [((name, styles[name].spec.evaluate.weight),) for name in names]
    events, listener = listen(options, 1)
    first = next(iter(styles.values()))
    base = resolve_base(options.base_model or first.spec.base.model, first.spec.base.revision, events)
    generator = MultiLoRAGenerator(base)
    for name, style in styles.items():
        generator.load_lora(style.run.root / style.trained.weights, name)
    stamp = dt.datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = request.out or runs.root / "_inference" / stamp
    folder.mkdir(parents=True, exist_ok=True)
    settings = first.spec.evaluate
    seed = first.spec.train.seed if options.seed is None else options.seed
    rows: list[dict[str, object]] = []
    total = len(request.prompts) * len(mixes)
    for number, prompt in enumerate(request.prompts):
        for mix in mixes:
            worded = with_triggers(prompt, [styles[name].spec.trigger for name, _ in mix])
            images = generator.generate(
                worded, lora_configs=list(mix), num_images=request.num_images, seed=seed,
                negative_prompt=settings.negative_prompt, steps=request.steps or settings.steps,
                guidance=request.guidance or settings.guidance, width=settings.width, height=settings.height,
            )  # fmt: skip
            for index, image in enumerate(images):
                path = folder / f"{number:02d}_{'+'.join(name for name, _ in mix)}_{seed + index}.png"
                image.save(path)
                rows.append({"file": path.name, "prompt": worded, "mix": dict(mix), "seed": seed + index})
            events("progress", what="prompts", done=len(rows) // request.num_images, total=total)
    if listener is not None:
        listener.close()
    write_json(folder / "images.json", {"base": base.name, "base_random": base.random, "images": rows})
    if base.random:
        events(
            "warning", text="the base model is made of random numbers: the images are noise, and show only that it runs"
        )
    if not options.json:
        stdout.print(f"{len(rows)} images in {folder}", markup=False)


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
