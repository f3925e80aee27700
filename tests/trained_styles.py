"""Styles as training leaves them, on the narrow base, without training: for tests of what works with adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_files import write_lora

from brushset.files import sha256_file, write_atomic, write_json
from brushset.load import build_spec, spec_text
from brushset.paths import RunPaths
from brushset.records import BaseFile, Checkpoint, Trained
from brushset.stage_records import StageRecord

SMALL = {"steps": 2, "width": 64, "height": 64}


def make_style(
    runs: Path, name: str, base: BaseFile, *, trigger: str, epochs: int = 1, base_sha256: str = "", **train: Any
) -> RunPaths:
    """A run of a style with a LoRA file for each epoch."""
    run = RunPaths(runs / name / "20250101-000000-0000")
    layer = {"name": name, "trigger": trigger, "base": {"model": base.name}, "train": train, "evaluate": SMALL}
    write_atomic(run.spec, spec_text(build_spec([("test", layer)])))
    write_json(run.manifest, {})
    seed = sum(map(ord, name))
    files = {epoch: run.weights / f"{name}-{epoch:06d}.safetensors" for epoch in range(1, epochs)}
    for epoch, file in files.items():
        write_lora(file, seed=seed + epoch)
    final = write_lora(run.weights / f"{name}.safetensors", seed=seed)
    kept = [
        Checkpoint(path=f"weights/{file.name}", epoch=epoch, step=epoch, sha256=sha256_file(file))
        for epoch, file in files.items()
    ]
    trained = Trained(
        engine="native", engine_version="0", command=(), weights=f"weights/{name}.safetensors",
        weights_sha256=sha256_file(final), checkpoints=tuple(kept), steps=epochs, epochs=epochs, losses=(), seconds=1.0,
        device="cpu", modules=264, tensors=792, base_sha256=base_sha256 or base.sha256, base_random=True,
    )  # fmt: skip
    record = StageRecord(
        stage="train",
        version=1,
        digest="0",
        started_at=0.0,
        ended_at=1.0,
        outputs={},
        data=trained.model_dump(mode="json"),
    )
    write_json(run.record("train"), record.model_dump(mode="json"))
    return run
