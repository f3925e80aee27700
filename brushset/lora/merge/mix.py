"""Adapters with weights to one set of factors, a module at a time, so that no more than one whole ΔW is in memory.

Two rank-32 files of SD 1.5's 264 modules, one core: concat, weighted and svd take seconds; ties and dare half a minute,
since they need each whole ΔW and its Gram matrix's leading eigenvectors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brushset.errors import UsageError
from brushset.log import silent
from brushset.lora.adapter import MAX_RANK, AdapterFile, Factors
from brushset.lora.lowrank import thin, to_factors
from brushset.lora.merge import concat, dare, svd, ties, weighted
from brushset.lora.merge.method import Merged, Method, Term, Wanted
from brushset.lora.merge.weights import Weight
from brushset.lora.metadata import model_hash
from brushset.protocols import Emit

if TYPE_CHECKING:
    import torch

METHODS: Mapping[str, Method] = {
    "concat": Method(concat.concat, exact=True),
    "weighted": Method(weighted.weighted, exact=True),
    "svd": Method(svd.svd, exact=False),
    "ties": Method(ties.ties, exact=False, density=ties.DENSITY),
    "dare": Method(dare.dare, exact=False, density=dare.DENSITY),
}
DTYPES = {"float": "float32", "fp16": "float16", "bf16": "bfloat16"}  # named as sd-scripts names them


@dataclass(frozen=True)
class Part:
    """One adapter of a mix. `name` is what people call it, unique in the mix."""

    name: str
    adapter: AdapterFile
    weight: Weight


@dataclass(frozen=True)
class Recipe:
    """How to merge: a name of METHODS and what it may be told; the dtype's name as sd-scripts has it."""

    method: str
    wanted: Wanted
    dtype: str = "float"


@dataclass(frozen=True)
class Mixed:
    """The merged factors, and the share of the method's full result that their rank holds, of all modules together."""

    factors: Mapping[str, Factors]
    energy: float


def mix(parts: Sequence[Part], recipe: Recipe, emit: Emit = silent) -> Mixed:
    """Merges every module that any of the adapters has; one that an adapter lacks is of zeros there.

    Modules of weight 0 in all adapters are left out.

    Raises:
        UsageError: a recipe or adapters that do not go together; all findings.
    """
    import torch

    if findings := [*_recipe_findings(recipe), *_part_findings(parts)]:
        raise UsageError.of_many(findings)
    dtype: torch.dtype = getattr(torch, DTYPES[recipe.dtype])
    factors, kept, whole = {}, 0.0, 0.0
    total = len(module_names(parts))
    for done, (name, like, merged) in enumerate(_modules(parts, recipe), 1):
        emit("progress", what=recipe.method, done=done, total=total)
        factors[name] = to_factors(merged.update, like, dtype)
        kept += merged.energy * merged.squared_norm
        whole += merged.squared_norm
    if not factors:
        raise UsageError("merge: every module has weight 0 in every adapter; there is nothing to write")
    return Mixed(factors, kept / whole if whole else 1.0)


def module_names(parts: Sequence[Part]) -> list[str]:
    """All modules of all adapters, sorted."""
    return sorted(set().union(*(part.adapter.factors for part in parts)))


def _modules(parts: Sequence[Part], recipe: Recipe) -> Iterator[tuple[str, Factors, Merged]]:
    hashes = [adapter_hash(part.adapter) for part in parts]
    merge = METHODS[recipe.method].merge
    for name in module_names(parts):
        terms, like = [], None
        for part, digest in zip(parts, hashes, strict=True):
            factor, weight = part.adapter.factors.get(name), part.weight.of(name)
            if factor is not None and weight:
                terms.append(Term(f"{name}:{digest}", weight, thin(factor)))
                like = factor
        if like is not None:
            yield name, like, merge(terms, recipe.wanted)


def adapter_hash(adapter: AdapterFile) -> str:
    """What an adapter's tensors are known by, whatever the file's name and metadata."""
    return "+".join(model_hash(file) for file in adapter.files)


def _recipe_findings(recipe: Recipe) -> list[str]:
    from brushset.lora import compose as composing

    wanted, findings = recipe.wanted, []
    method = METHODS.get(recipe.method)
    if method is None:
        composes = recipe.method in composing.METHODS
        hint = "; that is a way of making images: inference --method " + recipe.method if composes else ""
        return [f"--method {recipe.method}: no such method; there are: {', '.join(METHODS)}{hint}"]
    if wanted.rank is not None and method.exact:
        findings.append(
            f"--rank goes with svd, ties and dare; {recipe.method} is exact and has the rank it needs; fix: --method svd"
        )
    if wanted.rank is not None and not 1 <= wanted.rank <= MAX_RANK:
        findings.append(f"--rank {wanted.rank}: must be 1 to {MAX_RANK}")
    if wanted.density is not None and method.density is None:
        findings.append(f"--density goes with ties and dare; {recipe.method} keeps every entry")
    if wanted.density is not None and not 0 < wanted.density <= 1:
        findings.append(f"--density {wanted.density:g}: a share above 0, at most 1")
    if recipe.dtype not in DTYPES:
        findings.append(f"--dtype {recipe.dtype}: must be one of {', '.join(DTYPES)}")
    return findings


def _part_findings(parts: Sequence[Part]) -> list[str]:
    findings = [
        f"{part.name}: weight 0 everywhere adds nothing; fix: leave it out, or give it a weight"
        for part in parts
        if part.weight.nothing
    ]
    if len(parts) < 2:
        findings.append(f"merge: {len(parts)} adapter; two or more are merged, such as anime:0.6 watercolor:0.4")
    first: dict[str, str] = {}
    for part in parts:
        digest = adapter_hash(part.adapter)
        if digest in first:
            findings.append(
                f"{part.name}: holds the very tensors of {first[digest]}; fix: name it once, with the weights added up"
            )
        first.setdefault(digest, part.name)
    widths = {part.name: part.adapter.architecture.name for part in parts}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        findings.append(f"merge: the adapters are for models of different widths ({listed}); fix: merge those of one")
    return findings + _rank_findings(parts)


def _rank_findings(parts: Sequence[Part]) -> list[str]:
    ranks = [max(part.adapter.ranks) for part in parts]
    if sum(ranks) <= MAX_RANK:
        return []
    return [f"merge: ranks {' + '.join(map(str, ranks))} add up to more than {MAX_RANK}; fix: `resize` them first"]


def total_strength(parts: Sequence[Part]) -> float:
    """Σ wᵢ of the numbers for all modules: 1 leaves a mix as strong as one adapter, where they agree."""
    return math.fsum(part.weight.whole for part in parts)
