"""What `inspect`, `resize`, `metadata` and `doctor FILE` say, as lines of text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.files import one_line
from brushset.lora.diagnosis import Symptom
from brushset.lora.inspection import Inspection, training_facts, trigger_of
from brushset.lora.metadata_edit import PRIVATE

if TYPE_CHECKING:
    from brushset.lora.resize import ResizeReport

_BAR_CELLS = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MARKS = {"ok": "✓", "note": "!", "broken": "✗"}
_HASHES = ("sha256", "A1111 (Lora hashes)", "AutoV1", "AutoV2", "AutoV3")


def inspection_lines(facts: Inspection, width: int) -> list[str]:
    """An inspection for people, bars included."""
    dtypes = ", ".join(f"{name}" for name in sorted(facts.dtypes))
    lines = [f"file      {facts.path}  {facts.size_bytes / 1e6:.1f} MB", f"family    {facts.family}"]
    if facts.foreign:
        lines.append(f"kind      {facts.foreign}: brushset reads plain LoRA and LoCon of SD 1.5")
    else:
        lines += [
            f"layout    {' + '.join(facts.layouts)}{' (text encoder as lora_te1_)' if facts.old_text_prefix else ''}",
            f"rank      {_counted(module.rank for module in facts.modules.values())}",
            f"alpha     {_counted(module.alpha for module in facts.modules.values())}{_unstated(facts)}",
            f"modules   {len(facts.modules)}: {', '.join(f'{part} {count}' for part, count in facts.counts().items())}",
        ]
    lines.append(f"dtype     {dtypes}")
    trigger, where = trigger_of(facts.metadata)
    lines.append(f"trigger   {one_line(trigger)}  ({where})" if trigger else "trigger   not stated")
    for what, value in training_facts(facts.metadata).items():
        lines.append(f"{what:<18}{_short(value, width - 20)}")
    lines += [f"{name:<20}{facts.hashes[name]}" for name in _HASHES]
    if facts.hash_right is not None:
        right = (
            "is that of the tensors" if facts.hash_right else "is WRONG: the tensors were changed after it was taken"
        )
        lines.append(f"{'sshs_model_hash':<20}{right}")
    if facts.modules:
        lines += ["", "‖ΔW‖ by block, all modules of a block together", *bars(facts.blocks())]
    return lines


def inspection_json(facts: Inspection) -> dict[str, Any]:
    """An inspection for machines; NaN becomes null."""
    trigger, where = trigger_of(facts.metadata)
    return {
        "file": str(facts.path),
        "bytes": facts.size_bytes,
        "family": facts.family,
        "foreign": facts.foreign,
        "layouts": list(facts.layouts),
        "dtypes": dict(facts.dtypes),
        "modules": facts.counts(),
        "ranks": sorted({module.rank for module in facts.modules.values()}),
        "alphas": sorted({module.alpha for module in facts.modules.values() if math.isfinite(module.alpha)}),
        "alpha_stated": facts.alpha_stated,
        "norms_by_block": {block: _or_null(norm) for block, norm in facts.blocks().items()},
        "norms": {name: _or_null(module.norm) for name, module in facts.modules.items()},
        "trigger": trigger,
        "trigger_from": where,
        "training": training_facts(facts.metadata),
        "hashes": dict(facts.hashes),
        "hash_right": facts.hash_right,
        "metadata": dict(facts.metadata),
    }


def bars(values: Mapping[str, float]) -> list[str]:
    """A bar a value, to an eighth of a cell."""
    largest = max((value for value in values.values() if math.isfinite(value)), default=0.0)
    return [f"  {name:<9}{_bar(value, largest)} {value:.3g}" for name, value in values.items()]


def resize_lines(report: ResizeReport) -> list[str]:
    """A table of blocks, and the whole."""
    lines = [f"{'block':<9}{'rank':>6}{'→':>4}{'rank':>6}{'energy kept':>14}"]
    for block, (before, after, energy) in report.by_block().items():
        lines.append(f"{block:<9}{before:>6.3g}{'→':>4}{after:>6.3g}{energy:>14.2%}")
    worst = min(report.modules, key=lambda name: report.modules[name].energy)
    lines.append(f"all modules {report.energy:.2%}; least: {worst} {report.modules[worst].energy:.2%}")
    return lines


def metadata_lines(metadata: Mapping[str, str], width: int) -> list[str]:
    """A field a line, cut to the terminal; what gives something away is marked."""
    if not metadata:
        return ["no metadata"]
    lines = []
    for key, value in sorted(metadata.items()):
        mark = f"  [{PRIVATE[key]}]" if key in PRIVATE and value != "None" else ""
        lines.append(f"{key:<36}{_short(value, max(20, width - 38 - len(mark)))}{mark}")
    return lines


def symptom_lines(file: Path, symptoms: Sequence[Symptom]) -> list[str]:
    """A line a finding, its fix below."""
    lines = [str(file)]
    for symptom in symptoms:
        lines.append(f"{_MARKS[symptom.level]} {symptom.what:<9}{symptom.found}")
        if symptom.fix:
            lines.append(f"{'':11}fix: {symptom.fix.replace('FILE', str(file))}")
    if not any(symptom.level == "broken" for symptom in symptoms):
        lines.append("nothing here keeps it from working: use its trigger, and the base model that it was trained on")
    return lines


def _bar(value: float, largest: float) -> str:
    if not largest or not math.isfinite(value):
        return ""
    eighths = round(value / largest * _BAR_CELLS * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _counted(values: Any) -> str:
    """`32`, or `32 (264), 4 (85)` where there are several."""
    counts: dict[float, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    if len(counts) == 1:
        return f"{next(iter(counts)):g}"
    shown = sorted(counts.items(), key=lambda item: -item[1])
    rest = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return ", ".join(f"{value:g} ({count} modules)" for value, count in shown[:4]) + rest


def _unstated(facts: Inspection) -> str:
    return "" if facts.alpha_stated else "  (not stated: taken as the rank)"


def _short(text: str, width: int) -> str:
    text = one_line(text)
    return text if len(text) <= width else f"{text[: max(1, width - 1)]}…"


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
