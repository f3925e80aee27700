"""Whether a trained LoRA file is what was asked for: sd-scripts ends with exit code 0 also where it is not.

Seen with exit code 0: NaN in 528 of 792 tensors; 299 modules instead of 264 (--base_weights); the text encoder's
attention missing after a rename in transformers; `up` all zero where nothing was trained. Findings of one file are
collected, a line each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.bases.configs import SD15
from brushset.bases.header import Header, read_header
from brushset.bases.tensors import load_tensors
from brushset.errors import UsageError, VerificationFailed
from brushset.lora.keys import ALPHA, DOWN, PREFIXES, UP, Shape, expected_shapes
from brushset.lora.kinds import some
from brushset.spec import TrainSection

if TYPE_CHECKING:
    import torch

_ALPHA_TOLERANCE = 2**-8  # alpha is stored in the file's dtype: bf16 keeps 8 bits


@dataclass(frozen=True)
class LoraFacts:
    """What a verified file holds. `up_norm` is Frobenius, over all modules together."""

    modules: int
    tensors: int
    dim: int
    alpha: float
    dtype: str
    max_abs: float
    up_norm: float


@dataclass(frozen=True)
class _Look:
    """One look at a file: what is wrong with it, and what was read of it; `values` only where its names and shapes fit."""

    faults: list[str]
    header: Header | None
    values: Mapping[str, Any]


def find_faults(path: Path, train: TrainSection, *, narrow: bool) -> list[str]:
    """What is wrong with a file that [train] asked for, a line each, naming the file; empty where nothing is."""
    dim, alpha, text_encoder = train.network_dim, train.network_alpha, train.train_text_encoder
    return _look(path, dim=dim, alpha=alpha, text_encoder=text_encoder, narrow=narrow).faults


def verify_lora(path: Path, *, dim: int, alpha: float, text_encoder: bool, narrow: bool = False) -> LoraFacts:
    """Checks keys, shapes, rank, alpha and values of a Kohya file, and returns what it holds.

    With `narrow` (a base of other widths) the shapes need only fit the rank and one another.

    Raises:
        VerificationFailed: everything that is wrong, a line each, naming the file.
    """
    look = _look(path, dim=dim, alpha=alpha, text_encoder=text_encoder, narrow=narrow)
    if look.header is None or look.faults:
        raise VerificationFailed.of_many(look.faults)
    return _facts(look.header, look.values, dim, alpha)


def _look(path: Path, *, dim: int, alpha: float, text_encoder: bool, narrow: bool) -> _Look:
    try:
        header = read_header(path)
    except UsageError as error:
        return _Look(str(error).splitlines(), None, {})
    expected = expected_shapes(dim, text_encoder=text_encoder, architecture=SD15)
    findings = _compare_names(header, expected)
    findings += _compare_ranks(header, dim) if narrow else _compare_shapes(header, expected)
    values = {} if findings else _read_values(path)
    findings += _check_values(values, alpha)
    return _Look([f"{path}: {finding}" for finding in findings], header, values)


def _compare_names(header: Header, expected: Mapping[str, Shape]) -> list[str]:
    missing = sorted(expected.keys() - header.tensors.keys())
    extra = sorted(header.tensors.keys() - expected.keys())
    findings = []
    if missing:
        findings.append(f"{len(missing)} of {len(expected)} tensors are missing: {some(missing)}")
    if extra:
        findings.append(f"{len(extra)} tensors do not belong to an SD 1.5 LoRA: {some(extra)}")
    return findings


def _compare_shapes(header: Header, expected: Mapping[str, Shape]) -> list[str]:
    wrong = [
        f"{name} is {list(entry.shape)} instead of {list(expected[name])}"
        for name, entry in header.tensors.items()
        if name in expected and entry.shape != expected[name]
    ]
    return [f"{len(wrong)} tensors have the wrong shape: {some(wrong)}"] if wrong else []


def _compare_ranks(header: Header, dim: int) -> list[str]:
    """Where the widths are unknown: rank in the right place, same number of dimensions on both sides."""
    wrong = []
    for name, entry in header.tensors.items():
        module, _, kind = name.partition(".")
        other = header.shape(f"{module}.{UP}") or ()
        if kind == DOWN and (entry.shape[:1] != (dim,) or len(other) != len(entry.shape) or other[1] != dim):
            wrong.append(f"{module} has down {list(entry.shape)} and up {list(other)}, rank {dim} expected")
    return [f"{len(wrong)} modules have the wrong rank: {some(wrong)}"] if wrong else []


def _read_values(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in load_tensors(path).items()}


def _check_values(values: Mapping[str, Any], alpha: float) -> list[str]:
    findings = []
    broken = [name for name, tensor in values.items() if not tensor.isfinite().all()]
    if broken:
        findings.append(f"{len(broken)} of {len(values)} tensors hold NaN or infinity: {some(sorted(broken))}")
    other = {name: tensor.item() for name, tensor in values.items() if name.endswith(f".{ALPHA}")}
    wrong = [f"{name} = {value:g}" for name, value in other.items() if abs(value - alpha) > alpha * _ALPHA_TOLERANCE]
    if wrong:
        findings.append(f"{len(wrong)} modules carry another alpha than {alpha:g}: {some(sorted(wrong))}")
    for component, prefix in PREFIXES.items():
        ups = [tensor for name, tensor in values.items() if name.startswith(prefix) and name.endswith(UP)]
        if ups and not any(tensor.any() for tensor in ups):
            findings.append(f"all {len(ups)} up matrices of the {component} are zero: nothing was trained there")
    return findings


def _facts(header: Header, values: Mapping[str, Any], dim: int, alpha: float) -> LoraFacts:
    return LoraFacts(
        modules=sum(name.endswith(f".{ALPHA}") for name in header.tensors),
        tensors=len(header.tensors),
        dim=dim,
        alpha=alpha,
        dtype="+".join(sorted({entry.dtype for entry in header.tensors.values()})),
        max_abs=max(tensor.abs().max().item() for tensor in values.values() if tensor.dim() > 1),
        up_norm=float(sum(tensor.square().sum().item() for name, tensor in values.items() if name.endswith(UP)) ** 0.5),
    )
