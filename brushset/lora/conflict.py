"""Which adapters will get in each other's way, predicted from their factors alone, before any image.

Per module, by the SVD ΔW = Q·S·V of each (lowrank.py), with C = Q₁ᵀQ₂ and R = V₁V₂ᵀ, all of rank × rank:
    cosine     ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖), ⟨ΔW₁, ΔW₂⟩ = Σ s₁ᵢ s₂ⱼ CᵢⱼRᵢⱼ: 1 the same, −1 one undoes the other
    overlap    ‖C‖² / min(k₁, k₂) of what they write, ‖R‖² / min(k₁, k₂) of what they read: the mean squared cosine of
               the principal angles; chance is max(k₁, k₂) / width, which is subtracted
    within     ‖C S₂ Rᵀ‖² / ‖S₂‖²: the share of the second's energy that the first's spaces hold
    ratio      ‖ΔW₁‖ / ‖ΔW₂‖: at equal weights the stronger drowns the other
Over a block sums are taken before the division; overlaps are means of its modules. Adapters that were trained from one
seed begin with the same `down`, so that what they read overlaps without meaning. None of this is proven to predict
images (enforced orthogonality brought nothing, arXiv 2510.03262): it warns, and gates nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from brushset.lora.adapter import Factors
from brushset.lora.inspection import block_of, block_order
from brushset.lora.lowrank import cosine, decompose, thin, true_rank

if TYPE_CHECKING:
    import torch

ALL, UNET, TEXT = "all", "unet", "text"
SAME, ALIKE, AGAINST, CROWDED, IMBALANCE = 0.999, 0.3, -0.1, 0.3, 2.0
"""Where a line is said about a pair. Independent random updates have |cosine| < 1e-3 and overlaps of chance; the limits
are ours, not yet held against images."""
_SEED_SIGN = 0.5  # reads fill more than this of the room above chance, writes hardly: the same first values of `down`


@dataclass(frozen=True)
class Figures:
    """A pair's numbers in one block, or in `all`, `unet` or `text`. Overlaps are less chance; `input_room` is what the
    input overlap would be if both read the same; `norms` as they are.
    """

    cosine: float
    output_overlap: float
    input_overlap: float
    input_room: float
    first_in_second: float
    second_in_first: float
    norms: tuple[float, float]

    @property
    def ratio(self) -> float:
        """‖ΔW₁‖ / ‖ΔW₂‖; infinite or 0 where one is nothing, 1 where both are."""
        first, second = self.norms
        if not second:
            return math.inf if first else 1.0
        return first / second


@dataclass(frozen=True)
class Pair:
    """Two adapters: block, `all`, `unet` or `text` → figures."""

    first: str
    second: str
    blocks: Mapping[str, Figures]

    @property
    def whole(self) -> Figures:
        return self.blocks[ALL]


@dataclass(frozen=True)
class Conflicts:
    """All pairs; `norms` and `weights`: adapter → block and so on → ‖ΔW‖, and the weight
    proposed there.
    """

    pairs: Sequence[Pair]
    norms: Mapping[str, Mapping[str, float]]
    weights: Mapping[str, Mapping[str, float]]

    def warnings(self) -> list[str]:
        """What is worth a thought, a line each."""
        return [line for pair in self.pairs for line in _warnings(pair)]


@dataclass(frozen=True)
class _Spaces:
    """One module of one adapter: orthonormal columns [out, k], singular values [k], orthonormal rows [k, in]."""

    left: torch.Tensor
    core: torch.Tensor
    right: torch.Tensor


@dataclass
class _Sums:
    product: float = 0.0
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])
    within: list[float] = field(default_factory=lambda: [0.0, 0.0])
    overlaps: list[tuple[float, float, float]] = field(default_factory=list)


def find_conflicts(adapters: Mapping[str, Mapping[str, Factors]]) -> Conflicts:
    """Compares every pair: adapter's name → its factors. A module that one lacks is of zeros there."""
    modules = sorted(set().union(*adapters.values()))
    blocks = groups_of(modules)
    pairs = list(itertools.combinations(adapters, 2))
    sums = {(pair, block): _Sums() for pair in pairs for block in blocks}
    squares = {name: dict.fromkeys(blocks, 0.0) for name in adapters}
    for module in modules:
        spaces = {name: _spaces(factors.get(module)) for name, factors in adapters.items()}
        groups = _groups(module)
        for name, each in spaces.items():
            for block in groups:
                squares[name][block] += each.core.square().sum().item() if each else 0.0
        for pair in pairs:
            _add([sums[pair, block] for block in groups], spaces[pair[0]], spaces[pair[1]])
    norms = {name: {block: math.sqrt(value) for block, value in found.items()} for name, found in squares.items()}
    found = [Pair(*pair, {block: _figures(sums[pair, block]) for block in blocks}) for pair in pairs]
    return Conflicts(found, norms, balanced_weights(norms))


def groups_of(modules: Iterable[str]) -> list[str]:
    """What figures are told of: `all`, `unet`, `text`, then the blocks from the text encoder to the UNet's last."""
    found = {group for module in modules for group in _groups(module)}
    sides = [group for group in (ALL, UNET, TEXT) if group in found]
    return [*sides, *sorted(found.difference(sides), key=block_order)]


def _groups(module: str) -> tuple[str, str, str]:
    block = block_of(module)
    return ALL, TEXT if block.startswith(TEXT) else UNET, block


def balanced_weights(norms: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """wᵢ ∝ 1/‖ΔWᵢ‖ of sum 1, block by block: all adapters then move the model equally far. An adapter that does nothing
    in a block needs no share of it; where none does, all are equal.
    """
    weights: dict[str, dict[str, float]] = {name: {} for name in norms}
    for block in next(iter(norms.values())):
        inverse = {name: 1 / found[block] if found[block] else 0.0 for name, found in norms.items()}
        total = sum(inverse.values())
        for name, share in inverse.items():
            weights[name][block] = share / total if total else 1 / len(norms)
    return weights


def _spaces(factor: Factors | None) -> _Spaces | None:
    if factor is None:
        return None
    left, core, right = decompose(thin(factor))
    rank = true_rank(core)
    return _Spaces(left[:, :rank], core[:rank], right[:rank]) if rank else None


def _add(sums: Sequence[_Sums], first: _Spaces | None, second: _Spaces | None) -> None:
    """Adds one module's numbers to those of its block and of all."""
    squares = [spaces.core.square().sum().item() if spaces else 0.0 for spaces in (first, second)]
    for each in sums:
        each.squares = [held + square for held, square in zip(each.squares, squares, strict=True)]
    if first is None or second is None:
        return
    writes, reads = first.left.T @ second.left, first.right @ second.right.T
    product = (first.core @ (writes * reads) @ second.core).item()
    within = (((writes.T * first.core) @ reads), ((writes * second.core) @ reads.T))
    width = first.right.shape[1]
    overlap = (_excess(writes, len(first.left)), _excess(reads, width), 1 - max(reads.shape) / width)
    for each in sums:
        each.product += product
        each.within = [held + one.square().sum().item() for held, one in zip(each.within, within, strict=True)]
        each.overlaps.append(overlap)


def _excess(between: torch.Tensor, width: int) -> float:
    """Mean squared cosine of the principal angles, less what random subspaces of these ranks have."""
    return float(between.square().sum().item() / min(between.shape) - max(between.shape) / width)


def _figures(sums: _Sums) -> Figures:
    count = len(sums.overlaps)
    writes, reads, room = (sum(each[side] for each in sums.overlaps) / count if count else 0.0 for side in range(3))
    within = [held / whole if whole else 0.0 for held, whole in zip(sums.within, sums.squares, strict=True)]
    norms = (math.sqrt(sums.squares[0]), math.sqrt(sums.squares[1]))
    return Figures(cosine(sums.product, *sums.squares), writes, reads, room, within[0], within[1], norms)


def _warnings(pair: Pair) -> Iterator[str]:
    whole, both = pair.whole, f"{pair.first} and {pair.second}"
    if whole.cosine >= SAME:
        yield f"{both} are the same update but for strength (cosine {whole.cosine:.3f}): one of them will do"
        return
    if whole.cosine <= -SAME:
        yield f"{both} undo each other (cosine {whole.cosine:.3f}): at equal strength nothing is left"
        return
    if whole.cosine >= ALIKE:
        yield f"{both} pull the same way (cosine {whole.cosine:.2f}): together they overdo it; lower both weights"
    if whole.cosine <= AGAINST:
        yield f"{both} pull against each other (cosine {whole.cosine:.2f}): both get weaker"
    if AGAINST < whole.cosine < ALIKE and whole.output_overlap >= CROWDED:
        yield f"{both} write into the same directions (overlap {whole.output_overlap:.2f} above chance): they may blur"
    elif whole.input_room and whole.input_overlap >= _SEED_SIGN * whole.input_room and whole.output_overlap < CROWDED:
        yield (
            f"{both} read the same directions (overlap {whole.input_overlap:.2f} above chance of at most "
            f"{whole.input_room:.2f}), write others: a sign of one training seed, not of conflict"
        )
    yield from _imbalance(pair)
    apart = {
        block: each.cosine
        for block, each in pair.blocks.items()
        if block not in (ALL, UNET, TEXT) and not AGAINST < each.cosine < ALIKE
    }
    if AGAINST < whole.cosine < ALIKE and apart:
        worst = sorted(apart, key=lambda block: -abs(apart[block]))[:3]
        yield f"{both}: in {', '.join(f'{block} (cosine {apart[block]:.2f})' for block in worst)} they meet"


def _imbalance(pair: Pair) -> Iterator[str]:
    ratio = pair.whole.ratio
    stronger, weaker = (pair.first, pair.second) if ratio >= 1 else (pair.second, pair.first)
    factor = max(ratio, 1 / ratio) if ratio else math.inf
    if math.isinf(factor):
        yield f"{weaker} does nothing: all its ΔW are 0"
    elif factor >= IMBALANCE:
        yield f"{stronger} is {factor:.1f} times as strong as {weaker}: at equal weights it drowns it; see the weights"
