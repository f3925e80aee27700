"""The model card, README.md as the Hugging Face hub wants it, and a text for Civitai's form.

What was trained on random numbers says so first, and shows no scores. A base model on this machine is named by its file
alone; the hub links only those that it knows by id.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from brushset.files import link_or_copy, write_atomic
from brushset.protocols import ExportJob
from brushset.records import Cell, EvalReport, Package, Score
from webui_export.a1111 import package_of, prompt_call
from webui_export.header import about, base_name, describe, is_local, reservation, tags, title
from webui_export.workflow import DEFAULT_CHECKPOINT

MAX_SAMPLES = 4
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
    parts += [_scores(report), _use(job), _mixes(job), _training(job)]
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
        f"Suggested weight: {spec.export.weight:g}",
        *([f"Clip skip: {spec.train.clip_skip}"] if spec.train.clip_skip > 1 else []),
        f"Training: {job.trained.steps} steps, {counted(job.trained.epochs, 'epoch')}",
        f"Tags: {', '.join(tags(job))}",
        f"License: {spec.export.license}",
        f"Description: {describe(job)} Put {spec.trigger} first in the prompt, at weight {spec.export.weight:g}.",
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
    """The first images of the adapter alone, with the prompts that they were made of."""
    alone = next((cell for cell in report.cells if list(cell.mix) == [job.spec.name]), None)
    pairs = zip(_images(alone), _prompts(job, report), strict=False)
    for number, (image, prompt) in enumerate(list(pairs)[:MAX_SAMPLES], start=1):
        name = f"sample_{number}.png"
        shutil.copyfile(job.run.root / image, job.folder / name)
        yield Sample(name, prompt)


def _images(cell: Cell | None) -> Sequence[str]:
    return cell.images if cell else ()


def _prompts(job: ExportJob, report: EvalReport) -> list[str]:
    """The prompt of each place of the grid: prompts in order, under each its seeds."""
    return [f"{job.spec.trigger}, {prompt}" for prompt in report.prompts for _ in report.seeds]


def _facts(job: ExportJob) -> str:
    spec = job.spec
    rows = [
        ("Trigger", f"`{spec.trigger}`, first in the prompt"),
        ("Weight", f"{spec.export.weight:g}"),
        ("Base model", f"{base_name(spec.base.model)} (Stable Diffusion 1.5; no SD 2, SDXL or later)"),
        ("Negative prompt", f"`{spec.export.negative_prompt}`" if spec.export.negative_prompt else "none"),
        ("Rank, alpha", f"{spec.train.network_dim}, {spec.train.network_alpha:g}"),
        ("Licence", spec.export.license),
        ("Author", spec.export.author),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _scores(report: EvalReport) -> str:
    if not report.meaningful:
        return "## Scores\n\nNone are given: a model that took part was made of random numbers, or the run was a smoke test."
    rows = [_score_row(score) for score in report.scores if score.value is not None]
    if not rows:
        return ""
    table = "| Mix | Metric | Value | Better is | Images | By |\n|---|---|---|---|---|---|\n"
    return f"## Scores\n\n{table}" + "\n".join(rows)


def _score_row(score: Score) -> str:
    return f"| {score.cell} | {score.metric} | {score.value:.4g} | {score.direction} | {score.n} | {score.extractor} |"


def _use(job: ExportJob) -> str:
    spec = job.spec
    model = base_name(spec.base.model)
    model = "stable-diffusion-v1-5/stable-diffusion-v1-5" if is_local(spec.base.model) or ":" in model else model
    return f"""## Use

AUTOMATIC1111, Forge: put `{job.lora.name}` into `models/Lora`, then prompt `{prompt_call(job)}, a cat`.
ComfyUI: into `models/loras`, with an SD 1.5 checkpoint such as `{DEFAULT_CHECKPOINT}`; LoraLoader, both strengths {spec.export.weight:g}.

```python
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("{model}", torch_dtype=torch.float16).to("cuda")
pipe.load_lora_weights(".", weight_name="{job.lora.name}")  # a folder with the file, or this repository's name
image = pipe("{spec.trigger}, a cat", cross_attention_kwargs={{"scale": {spec.export.weight:g}}}).images[0]
```"""


def _mixes(job: ExportJob) -> str:
    lines = []
    for mix in job.mixes:
        calls = " ".join(f"<lora:{part.style}:{part.weight:g}>" for part in mix.parts)
        lines.append(
            f"- with {', '.join(part.style for part in mix.parts[1:])}: `{calls} {', '.join(part.trigger for part in mix.parts)}`"
        )
    return "## Mixes\n\n" + "\n".join(lines) if lines else ""


def _training(job: ExportJob) -> str:
    train, trained = job.spec.train, job.trained
    text_rate = f" and {train.text_encoder_lr:g} (text encoder)" if train.train_text_encoder else ""
    return f"""## Training

{trained.steps} steps, {counted(trained.epochs, "epoch")}, effective batch {train.batch_size * train.gradient_accumulation_steps}, \
rates {train.unet_lr:g} (UNet){text_rate}, {train.lr_scheduler} schedule, {train.optimizer}, \
{job.spec.dataset.resolution} px, by the engine {trained.engine} ({trained.engine_version}).
SHA-256 of the file as trained: `{trained.weights_sha256}`."""
