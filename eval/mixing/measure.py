"""A candidate in numbers: what is left of each style, how even that is, how well prompts are followed, and the bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from brushset.records import Estimate, MixCandidate
from brushset.spec import EvaluateSection
from eval.cells import PlannedCell
from eval.clip_score import measure_clip_difference
from eval.embedder import Identity
from eval.look import Extractor
from eval.metric import ExtractorName, Interval, Measurement, NotMeasured
from eval.mixes import PerStyle, least_difference, measure_mix_balance, measure_mix_retention, style_retention
from eval.score import why_unfit
from eval.seen import Seen
from eval.table import STYLE_ENCODERS


@dataclass(frozen=True)
class Sight:
    """What mixes are judged through: `style` by the encoder of style that is trusted most, `prompts` by CLIP. Where nothing
    that it shows would mean anything, `blind` says why.
    """

    encoder: str
    style: Seen | None
    prompts: Seen | None
    blind: str = ""

    def at(self, prompts: Sequence[int]) -> Sight:
        """The same with the places of some prompts alone."""
        style, fidelity = (each.at(prompts) if each else None for each in (self.style, self.prompts))
        return replace(self, style=style, prompts=fidelity)


def find_sight(
    seen: Mapping[ExtractorName, Seen], extractors: Mapping[ExtractorName, Extractor], *, base_random: bool
) -> Sight:
    """CSD where it is real and tells the styles' references apart, else CLIP, else none."""
    if not any(extractors[name].identity.meaningful for name in STYLE_ENCODERS if name in seen):
        return Sight("", None, None, "no real encoder of style took part")
    refused = []
    for name in STYLE_ENCODERS:
        identity = extractors[name].identity
        reason = "" if name in seen else identity.note or "its weights are not there"
        reason = reason or _doubt(name, identity, seen[name])
        if not reason:
            blind = "the base model is made of random numbers" if base_random else ""
            return Sight(identity.id, seen[name], _real_clip(seen, extractors), blind)
        refused.append(f"{identity.id}: {reason}")
    return Sight("", None, None, f"no encoder of style can be used ({'; '.join(refused)})")


def measure_candidate(cell: PlannedCell, sight: Sight, settings: EvaluateSection) -> MixCandidate:
    """All numbers of a mix, each with its interval, or why there is none."""
    mix = dict(cell.mix)
    styles = {style: _of_style(sight.style, cell.name, style) for style in mix}
    least = _estimate(sight.style, cell.name, measure_mix_retention)
    balance = _estimate(sight.style, cell.name, measure_mix_balance)
    fidelity = _estimate(sight.prompts, cell.name, measure_clip_difference)
    broken, unknown = _against_bounds(balance, fidelity, settings)
    unknown += [f"what is left of the styles was {least.note}"] if least.value is None else []
    return MixCandidate(
        cell=cell.name, mix=mix, method=cell.method, retention=styles, least=least, balance=balance, fidelity=fidelity,
        feasible=False if broken else None if unknown else True, reasons=(*broken, *unknown),
    )  # fmt: skip


def measure_difference(sight: Sight, cell: str, other: str) -> Estimate:
    """By how much the least retention of one candidate is above the other's, prompt by prompt."""
    if sight.style is None:
        return Estimate(value=None, note="not measured: no encoder of style")
    try:
        value, interval = least_difference(sight.style, cell, other)
    except NotMeasured as error:
        return Estimate(value=None, note=f"not measured: {error}")
    return _with_interval(value, interval)


def _doubt(name: ExtractorName, identity: Identity, seen: Seen) -> str:
    return why_unfit(name, seen, identity) if identity.meaningful else "made up"


def _real_clip(seen: Mapping[ExtractorName, Seen], extractors: Mapping[ExtractorName, Extractor]) -> Seen | None:
    return seen.get("clip") if extractors["clip"].identity.meaningful else None


def _estimate(seen: Seen | None, cell: str, measure: Callable[[Seen, str], Measurement]) -> Estimate:
    if seen is None:
        return Estimate(value=None, note="not measured: its network is not there, or is made up")
    try:
        found = measure(seen, cell)
    except NotMeasured as error:
        return Estimate(value=None, note=f"not measured: {error}")
    return _with_interval(found.value, found.interval)


def _of_style(seen: Seen | None, cell: str, style: str) -> Estimate:
    found = style_retention(seen, cell, style) if seen else PerStyle(None, note="no encoder of style")
    if found.value is None:
        return Estimate(value=None, note=f"not measured: {found.note}")
    return _with_interval(found.value, found.interval)


def _with_interval(value: float, interval: Interval | None) -> Estimate:
    if interval is None or interval.low is None:
        return Estimate(value=value, note=interval.method if interval else "")
    return Estimate(value=value, low=interval.low, high=interval.high)


def _against_bounds(balance: Estimate, fidelity: Estimate, settings: EvaluateSection) -> tuple[list[str], list[str]]:
    """Which bounds are broken, and which cannot be looked at. Of balance the value counts: to ask more of it would be to
    ask twice for what is maximised.
    """
    broken, unknown = [], []
    least = settings.min_mix_fidelity
    if fidelity.low is None:
        unknown.append(f"prompt fidelity has no lower bound: {fidelity.note}")
    elif fidelity.low < least:
        broken.append(f"CLIP score {fidelity.low:+.1f} to the base at its lower bound, below {least:+.1f}")
    if balance.value is None:
        unknown.append(f"balance was {balance.note}")
    elif balance.value < settings.min_balance:
        broken.append(f"balance {balance.value:.2f}, below {settings.min_balance:g}")
    return broken, unknown
