"""Runs and packages for the tests of `export`: two styles on the narrow model, trained and evaluated, on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_files import write_lora
from PIL import Image

from brushset.load import spec_text
from brushset.paths import RunPaths
from brushset.pipeline import StageContext
from brushset.protocols import Advice, ExportJob
from brushset.records import Cell, Estimate, EvalReport, Exports, MixCandidate, MixChoice, Score, Trained
from brushset.spec import EvaluateSection, StyleSpec
from brushset.stage_records import StageRecord
from webui_export.lora_file import write_lora as write_exported
from webui_export.stage import STAGE

TOLD = {  # what a trainer's header says, and what of it breaks A1111's cards
    "ss_output_name": "last-000004",
    "ss_network_dim": "2",
    "ss_network_alpha": "1.0",
    "ss_network_module": "networks.lora",
    "ss_clip_skip": "None",
    "ss_training_comment": "",
    "ss_sd_model_hash": "IsADirectory",
    "ss_dataset_dirs": '{"images": {"n_repeats": 1, "img_count": 4}}',
    "ss_datasets": '[{"tag_frequency": {"images": {"secret": 1}}}]',
    "modelspec.date": "2025-03-04T05:06:07",
    "modelspec.resolution": "256x256",
    "sshs_model_hash": "0" * 64,
}
SETTINGS = EvaluateSection(prompts=("a girl", "a lake"), seeds=(1,), steps=2, width=128, height=128)


def make_spec(name: str = "cartoon", **changes: Any) -> StyleSpec:
    return StyleSpec(name=name, trigger=f"{name}style", evaluate=SETTINGS, **changes)


def header_of(name: str) -> dict[str, str]:
    return {**TOLD, "ss_tag_frequency": f'{{"images": {{"{name}style": 4, "secret": 1}}}}'}


def trained_record(name: str, *, base_random: bool = False) -> Trained:
    return Trained(
        engine="native", engine_version="1", command=(), weights=f"weights/{name}.safetensors", weights_sha256=name,
        checkpoints=(), steps=20, epochs=1, losses=(), seconds=1, device="cpu", modules=264, tensors=792,
        base_sha256="base", base_random=base_random,
    )  # fmt: skip


def make_run(
    runs: Path, name: str, *, metadata: Mapping[str, str] | None = None, spec: StyleSpec | None = None
) -> RunPaths:
    """A trained run: weights, spec.toml, the record of its training, pictures of an evaluation."""
    run = RunPaths(runs / name / "2025-run")
    seed = sum(map(ord, name))
    write_lora(
        run.weights / f"{name}.safetensors", metadata=dict(metadata or header_of(name)), dim=2, alpha=1.0, seed=seed
    )
    run.manifest.write_text("{}")
    run.spec.write_text(spec_text(spec or make_spec(name)))
    record = StageRecord(
        stage="train", version=1, digest="d", started_at=0, ended_at=1, outputs={},
        data=trained_record(name).model_dump(mode="json"),
    )  # fmt: skip
    run.record("train").parent.mkdir()
    run.record("train").write_text(record.model_dump_json())
    for cell in ("alone", "mix"):
        for number in range(2):
            path = run.eval / "images" / cell / f"{number}_1.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.linear_gradient("L").rotate(90 * number + len(cell)).resize((640, 512)).convert("RGB").save(path)
    Image.new("RGB", (80, 40), "#336699").save(run.eval / "grid.png")
    return run


def report_of(name: str, *others: str, meaningful: bool = True) -> EvalReport:
    """The evaluation's record: base, alone, and a pair with each of the others."""
    images = {cell: tuple(f"eval/images/{cell}/{number}_1.png" for number in range(2)) for cell in ("alone", "mix")}
    cells = [
        Cell(name="base", mix={}, images=(), role="base"),
        Cell(name="base + style words", mix={}, images=(), role="words"),
        Cell(name=f"{name} 0.8", mix={name: 0.8}, images=images["alone"], role="alone"),
        *(
            Cell(name=f"{name} 0.5 + {other} 0.6", mix={name: 0.5, other: 0.6}, images=images["mix"])
            for other in others
        ),
    ]
    score = Score(
        metric="clip_score", cell=f"{name} 0.8", value=0.31234, n=2, higher_is_better=True, extractor="ViT-L/14",
        meaningful=meaningful, low=0.2, high=0.4,
    )  # fmt: skip
    return EvalReport(
        cells=tuple(cells), scores=(score,), grid="eval/grid.png", prompts=SETTINGS.prompts, seeds=(1,),
        meaningful=meaningful, notes=(), mix_choices=tuple(mix_choice(name, other) for other in others),
    )  # fmt: skip


def mix_candidate(mix: Mapping[str, float], method: str = "weighted") -> MixCandidate:
    nothing, addition = Estimate(value=None), "" if method == "weighted" else f", {method}"
    return MixCandidate(
        cell=" + ".join(f"{style} {weight:g}" for style, weight in mix.items()) + addition, mix=dict(mix), method=method,
        retention=dict.fromkeys(mix, nothing), least=nothing, balance=nothing, fidelity=nothing, feasible=None,
    )  # fmt: skip


def mix_choice(name: str, other: str, **changes: Any) -> MixChoice:
    """0.5 and 0.6, of which half of the other is left."""
    advised = mix_candidate({name: 0.5, other: 0.6})
    choice = MixChoice(
        styles=(name, other), chosen=advised, as_sum=advised, decided_by="retention",
        reason=f"Half of {other} is left.", meaningful=True,
    )  # fmt: skip
    return choice.model_copy(update=changes)


def run_export(
    run: RunPaths, report: EvalReport, workdir: Path, *, spec: StyleSpec | None = None, events: list[Any] | None = None,
    trained: Trained | None = None,
) -> Exports:  # fmt: skip
    """Runs the stage into `workdir`."""
    workdir.mkdir(parents=True)
    name = run.style
    records = {Trained: trained or trained_record(name), EvalReport: report}
    heard = [] if events is None else events
    context = StageContext(
        spec or make_spec(name), run, workdir, lambda event, **fields: heard.append((event, fields)), records, None
    )
    return STAGE.run(context)


def make_job(
    root: Path, *, spec: StyleSpec | None = None, base_random: bool = False, preview: bool = True
) -> ExportJob:
    """A job whose LoRA is not written yet."""
    spec = spec or make_spec()
    run = make_run(root / "runs", spec.name, spec=spec)
    folder = root / "package"
    folder.mkdir()
    return ExportJob(
        spec=spec,
        run=run,
        trained=trained_record(spec.name, base_random=base_random),
        weights=run.weights / f"{spec.name}.safetensors",
        lora=root / "drafts" / f"{spec.name}.safetensors",
        preview=run.eval / "images/alone/0_1.png" if preview else None,
        folder=folder,
        advice=Advice(weight=0.8, epoch=1, steps=20, sha256=spec.name),
    )


def written_job(root: Path, **settings: Any) -> ExportJob:
    """A job whose LoRA is written."""
    job = make_job(root, **settings)
    write_exported(job)
    return job


def raw_parts(path: Path) -> tuple[bytes, bytes]:
    """A safetensors file's header and its tensors."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return raw[8 : 8 + size], raw[8 + size :]


def linked_copy(source: Path, target: Path) -> Path:
    """A copy by hard links, for tests that put other files in place of some, and change none."""
    shutil.copytree(source, target, copy_function=os.link)
    return target
