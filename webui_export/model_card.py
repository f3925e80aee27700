"""The model card, README.md as the Hugging Face hub wants it, and a text for Civitai's form.

What was trained on random numbers says so first, and shows no scores. A base model on this machine is named by its file
alone; the hub links only those that it knows by id.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from brushset.files import link_or_copy, write_atomic
from brushset.page.metrics import decimals_of, title_of
from brushset.page.template import sentence
from brushset.protocols import ExportJob
from brushset.records import EvalReport, Package, Score
from webui_export.a1111 import package_of, prompt_call
from webui_export.header import about, base_name, describe, is_local, reservation, tags, title
from webui_export.names import mix_calls
from webui_export.samples import alone_cell, ordered_samples
from webui_export.workflow import DEFAULT_CHECKPOINT

MAX_SAMPLES = 4
CARD_METRICS = (
    "retention_csd", "style_similarity_csd", "style_similarity", "clip_score", "clip_score_difference", "kd_dinov2",
    "fid", "memorisation_gap", "copies", "lpips_ratio", "vendi_ratio",
)  # fmt: skip
"""Those that say something alone; eval/scores.json has all."""
GRID = "grid.png"
_RANDOM = "random:"


@dataclass(frozen=True)
class Sample:
    """One picture of the card's gallery."""

    file: str
    prompt: str


def export_hub(job: ExportJob, report: EvalReport) -> Package:
    """Writes README.md, the LoRA, the evaluation's grid and some samples: what `--push-to-hub` uploads."""
    link_or_copy(job.lora, job.folder / job.lora.name)
    if report.grid and (job.run.root / report.grid).is_file():
        shutil.copyfile(job.run.root / report.grid, job.folder / GRID)
    samples = list(_copy_samples(job, report))
    write_atomic(job.folder / "README.md", f"---\n{_header(job, samples)}---\n\n{card_text(job, report)}")
    return package_of("hub", job.folder, "orchestrate.py export --push-to-hub NAME/REPO uploads it")


def card_text(job: ExportJob, report: EvalReport) -> str:
    """The card below its header."""
    spec, doubt = job.spec, reservation(job)
    parts = [f"# {title(spec.name)}"]
    parts += [f"> **Not a usable style.** {doubt}"] if doubt else []
    parts += [about(job), _facts(job)]
    parts += [f"## Grid\n\n![Evaluation grid]({GRID})"] if (job.folder / GRID).is_file() else []
    parts += [_choice(job), _scores(report, job.spec.name), _use(job), _mixes(job), _training(job)]
    return "\n\n".join(filter(None, parts)) + "\n"


def counted(number: int, what: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def civitai_text(job: ExportJob) -> str:
    """What Civitai's form asks for, in its order, to be pasted."""
    spec, doubt = job.spec, reservation(job)
    lines = [
        f"# {title(spec.name)}",
        *([f"**Do not publish: {doubt}**"] if doubt else []),
        "Type: LoRA",
        "Category: style",
        f"Base model: SD 1.5 (trained on {base_name(spec.base.model)})",
        f"Trigger words: {spec.trigger}",
        f"Suggested weight: {job.advice.weight:g}",
        *([f"Clip skip: {spec.train.clip_skip}"] if spec.train.clip_skip > 1 else []),
        f"Training: {job.advice.steps} steps, {counted(job.advice.epoch, 'epoch')}",
        f"Tags: {', '.join(tags(job))}",
        f"License: {spec.export.license}",
        f"Description: {describe(job)} Put {spec.trigger} first in the prompt, at weight {job.advice.weight:g}.",
        f"Upload: hub/{job.lora.name}, with the pictures beside it",
    ]
    return "\n\n".join(lines) + "\n"


def _header(job: ExportJob, samples: Sequence[Sample]) -> str:
    from huggingface_hub import ModelCardData

    spec = job.spec
    model = None if is_local(spec.base.model) or spec.base.model.startswith(_RANDOM) else spec.base.model
    data = ModelCardData(
        license=spec.export.license,
        base_model=model,
        base_model_relation="adapter" if model else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        instance_prompt=spec.trigger,
        tags=["text-to-image", "stable-diffusion", "stable-diffusion-diffusers", "diffusers", *tags(job)],
        widget=[{"text": sample.prompt, "output": {"url": sample.file}} for sample in samples] or None,
    )
    return f"{data.to_yaml()}\n"


def _copy_samples(job: ExportJob, report: EvalReport) -> Iterator[Sample]:
    """Images of the adapter alone, the best first, then of every prompt one, with the prompts that they were made of."""
    cell, prompts = alone_cell(report, job.spec.name), _prompts(job, report)
    if cell is None:
        return
    places = [place for place in ordered_samples(job.run, report, job.spec.name) if place < len(prompts)]
    for number, place in enumerate(places[:MAX_SAMPLES], start=1):
        name = f"sample_{number}.png"
        shutil.copyfile(job.run.root / cell.images[place], job.folder / name)
        yield Sample(name, prompts[place])


def _prompts(job: ExportJob, report: EvalReport) -> list[str]:
    """The prompt of each place of the grid: prompts in order, under each its seeds."""
    return [f"{job.spec.trigger}, {prompt}" for prompt in report.prompts for _ in report.seeds]


def _facts(job: ExportJob) -> str:
    spec = job.spec
    rows = [
        ("Trigger", f"`{spec.trigger}`, first in the prompt"),
        ("Weight", f"{job.advice.weight:g}"),
        ("Base model", f"{base_name(spec.base.model)} (Stable Diffusion 1.5; no SD 2, SDXL or later)"),
        ("Negative prompt", f"`{spec.export.negative_prompt}`" if spec.export.negative_prompt else "none"),
        ("Rank, alpha", f"{spec.train.network_dim}, {spec.train.network_alpha:g}"),
        ("Licence", spec.export.license),
        ("Author", spec.export.author),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _choice(job: ExportJob) -> str:
    """Which checkpoint this is, at which weight, and why."""
    reason = job.advice.reason
    return f"## Which checkpoint, at which weight\n\n{sentence(reason)}" if reason else ""


def _scores(report: EvalReport, style: str) -> str:
    """Of the adapter alone, beside the base and the base with style words, which it has to beat."""
    if not report.meaningful:
        return "## Scores\n\nNone are given: a model that took part was made of random numbers, or the run was a smoke test."
    alone = alone_cell(report, style)
    words = next((cell.name for cell in report.cells if cell.role == "words"), "")
    columns = [name for name in ("base", words, alone.name if alone else "") if name]
    found = {
        (score.metric, score.cell): score for score in report.scores if score.value is not None and score.meaningful
    }
    rows = [row for metric in CARD_METRICS if (row := _score_row(metric, columns, found))]
    if not rows:
        return ""
    head = "| | " + " | ".join(columns) + " | Better is | Images | By |\n" + "|---" * (len(columns) + 4) + "|\n"
    note = f"With 95 % intervals. To be beaten is {words}: the base model told the style in words." if words else ""
    return f"## Scores\n\n{head}" + "\n".join(rows) + f"\n\n{note}".rstrip()


def _score_row(metric: str, columns: Sequence[str], found: Mapping[tuple[str, str], Score]) -> str:
    scores = [found.get((metric, column)) for column in columns]
    known = next((score for score in reversed(scores) if score), None)
    if known is None:
        return ""
    told = " | ".join(_told(score) if score else "–" for score in scores)
    return f"| {title_of(metric)} | {told} | {known.direction} | {known.n} | {known.extractor} |"


def _told(score: Score) -> str:
    assert score.value is not None
    places = decimals_of(score.metric)
    if score.low is None or score.high is None:
        return f"{score.value:.{places}f}"
    return f"{score.value:.{places}f} ({score.low:.{places}f} to {score.high:.{places}f})"


def _use(job: ExportJob) -> str:
    spec = job.spec
    model = base_name(spec.base.model)
    model = "stable-diffusion-v1-5/stable-diffusion-v1-5" if is_local(spec.base.model) or ":" in model else model
    return f"""## Use

AUTOMATIC1111, Forge: put `{job.lora.name}` into `models/Lora`, then prompt `{prompt_call(job)}, a cat`.
ComfyUI: into `models/loras`, with an SD 1.5 checkpoint such as `{DEFAULT_CHECKPOINT}`; LoraLoader, both strengths {job.advice.weight:g}.

```python
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{model}", torch_dtype=torch.float16).to("cuda")
pipe.load_lora_weights(".", weight_name="{job.lora.name}")  # a folder with the file, or this repository's name
image = pipe("{spec.trigger}, a cat", cross_attention_kwargs={{"scale": {job.advice.weight:g}}}).images[0]
```"""


def _mixes(job: ExportJob) -> str:
    lines = []
    for mix in job.mixes:
        calls = mix_calls(mix.parts)
        lines.append(
            f"- with {', '.join(part.style for part in mix.parts[1:])}: `{calls} {', '.join(part.trigger for part in mix.parts)}`"
        )
        lines += [f"  {text}" for text in (mix.reason, mix.note) if text]
    return "## Mixes\n\n" + "\n".join(lines) if lines else ""


def _training(job: ExportJob) -> str:
    train, trained = job.spec.train, job.trained
    text_rate = f" and {train.text_encoder_lr:g} (text encoder)" if train.train_text_encoder else ""
    return f"""## Training

{trained.steps} steps, {counted(trained.epochs, "epoch")}{_taken(job)}, effective batch {train.batch_size * train.gradient_accumulation_steps}, \
rates {train.unet_lr:g} (UNet){text_rate}, {train.lr_scheduler} schedule, {train.optimizer}, \
{job.spec.dataset.resolution} px, by the engine {trained.engine} ({trained.engine_version}).
SHA-256 of the file as trained: `{job.advice.sha256}`."""


def _taken(job: ExportJob) -> str:
    """Which of them this is, where it is not the last."""
    if job.advice.sha256 == job.trained.weights_sha256:
        return ""
    return f" (this file: epoch {job.advice.epoch}, step {job.advice.steps})"
