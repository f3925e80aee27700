"""An adapter from whatever form it has to Kohya's or diffusers', proven equal before it stands under its name.

The result is written beside its place, read back, and compared with what was given: ΔW of every module, then the
outputs of UNet and text encoder (deltas.py, outputs.py). The figures go into a JSON file next to it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from brushset.errors import UsageError
from brushset.files import write_json
from brushset.lora.adapter import WEIGHT_NAME, AdapterFile, read_adapter
from brushset.lora.deltas import MAX_RELATIVE_ERROR, DeltaCheck, compare_deltas, require_equal
from brushset.lora.forms import describe_origin, restore_origin, to_diffusers, to_kohya
from brushset.lora.keys import PREFIXES
from brushset.lora.layouts import COUNTED, DIFFUSERS, KOHYA
from brushset.lora.metadata import model_hash
from brushset.lora.outputs import MAX_OUTPUT_ERROR, OutputCheck, compare_outputs, require_same_outputs
from brushset.lora.save import save_adapter
from brushset.lora.strength import ORIGIN_KEY

Form = Literal["kohya", "diffusers"]
REPORT_NAME = "convert.json"
_CALLED: Mapping[Form, str] = {"kohya": "Kohya's", "diffusers": "diffusers'"}
_SOURCE_KEY = "brushset.source_model_hash"
_OF_ITS_FORM = (
    "format", ORIGIN_KEY, _SOURCE_KEY, "lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash",
    "modelspec.hash_sha256",
)  # fmt: skip


@dataclass(frozen=True)
class Conversion:
    """What was written, and the proof; the checks are None where none were asked for."""

    path: Path
    source: AdapterFile
    dtypes: tuple[str, ...]
    deltas: DeltaCheck | None
    outputs: OutputCheck | None

    def told(self) -> str:
        """One line for people."""
        if self.deltas is None or self.outputs is None:
            return "not verified"
        text = f"{self.deltas.modules} modules equal to {self.deltas.max_relative_error:.1g}"
        return f"{text}, outputs to {self.outputs.worst:.1g} ({self.outputs.seconds:g} s)"

    def report(self) -> dict[str, Any]:
        """The figures, for convert.json."""
        return {
            "source": self.source.path.name,
            "source_layout": list(self.source.layouts),
            "source_model_hash": [model_hash(file) for file in self.source.files],
            "source_dtype": list(self.source.dtypes),
            "alpha_stated": self.source.alpha_stated,
            "ranks": self.source.ranks,
            "result": self.path.name,
            "result_model_hash": model_hash(self.path),
            "result_dtype": list(self.dtypes),
            "allowed": {"delta": MAX_RELATIVE_ERROR, "output": MAX_OUTPUT_ERROR},
            "deltas": dataclasses.asdict(self.deltas) if self.deltas else None,
            "outputs": self.outputs.figures() if self.outputs else None,
        }


def convert_adapter(source: AdapterFile, to: Form, target: Path, *, verify: bool = True) -> Conversion:
    """Writes an adapter in another form as the file `target`, and its figures as `report_path(target)`.

    Raises:
        UsageError: it has that form already.
        VerificationFailed: what came out is not what went in; nothing is left under `target`.
    """
    if has_form(source, to):
        raise UsageError(f"{source.path}: is in {_CALLED[to]} form already")
    draft = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        _write(source, to, draft)
        result = read_adapter(draft)
        deltas = outputs = None
        if verify:
            deltas = compare_deltas(source.factors, result.factors, str(source.path))
            require_equal(deltas, str(source.path))
            outputs = compare_outputs(source, result)
            require_same_outputs(outputs, str(source.path))
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    conversion = Conversion(target, source, result.dtypes, deltas, outputs)
    write_json(report_path(target), conversion.report())
    return conversion


def report_path(target: Path) -> Path:
    """Where the figures go: convert.json in diffusers' folder; not `<stem>.json`, which A1111 reads as its own."""
    return target.parent / REPORT_NAME if target.name == WEIGHT_NAME else target.with_suffix(f".{REPORT_NAME}")


def has_form(adapter: AdapterFile, form: Form) -> bool:
    """Whether a file is as `convert_adapter` would write it, by its names."""
    if form == "diffusers":
        return adapter.layouts == (DIFFUSERS,) and not adapter.metadata.get("lora_adapter_metadata")
    return adapter.layouts == (KOHYA,) and adapter.alpha_stated and not adapter.old_text_prefix


def kohya_metadata(source: AdapterFile) -> dict[str, str]:
    """What the Kohya form of an adapter says of itself: what it said before, and what UIs need to know it for SD 1.5.
    Hashes are left out: they are of the bytes that are written.
    """
    told = {
        "ss_network_module": "networks.lora",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_dim": str(max(source.ranks)),
        "ss_network_alpha": str(max(factor.alpha for factor in source.factors.values())),
        "modelspec.architecture": "stable-diffusion-v1/lora",
        _SOURCE_KEY: _source_hash(source),
    }
    return {**told, **_kept_metadata(source)}


def _write(source: AdapterFile, to: Form, draft: Path) -> None:
    if to == "diffusers":
        told = {"format": "pt", _SOURCE_KEY: _source_hash(source), ORIGIN_KEY: describe_origin(source.factors)}
        save_adapter(draft, to_diffusers(source.factors), {**_kept_metadata(source), **told})
        return
    if text := source.metadata.get(ORIGIN_KEY):
        factors = restore_origin(source.factors, text, str(source.path))
        source = dataclasses.replace(source, factors=factors)
    save_adapter(draft, to_kohya(source.factors), kohya_metadata(source))


def _source_hash(source: AdapterFile) -> str:
    return "+".join(model_hash(file) for file in source.files)


def _kept_metadata(source: AdapterFile) -> dict[str, str]:
    """The source's metadata without what is about the form left behind: a count of layers, hashes of other bytes."""
    counted = COUNTED in source.layouts
    return {
        key: value
        for key, value in source.metadata.items()
        if value and key not in _OF_ITS_FORM and not (counted and (key in PREFIXES or ":" in key))
    }
