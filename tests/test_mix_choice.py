"""Which mix is advised: the rule on made-up numbers, what is tried, and the stage around it in a world of colours."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_case import layout, seen
from eval_runs import SETTINGS, FakeGenerator, add_references, add_run, as_if_real, make_spec, run_stage, trained
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from brushset.generator import ImageJob, Sampling
from brushset.records import Estimate, EvalReport, Matrix, MixCandidate, MixChoice, Prediction
from brushset.spec import EvaluateSection, StyleSpec
from eval import mixes
from eval.cells import PlannedCell, mix_cell
from eval.clip_score import measure_clip_difference
from eval.embedder import Embedder, Identity, Towers
from eval.mixing.choose import Chooser, Mixing, default_triples
from eval.mixing.explain import explain, losing_style
from eval.mixing.halves import prompt_halves
from eval.mixing.measure import Sight, find_sight, measure_candidate, measure_difference
from eval.mixing.project import agreements, interference
from eval.mixing.rule import COST, Contender, Decision, decide
from eval.mixing.shares import Ingredient, method_options, method_weights, weights_of

PARTS = [Ingredient("ink", "inkstyle", 0.8), Ingredient("wash", "washstyle", 0.8), Ingredient("oil", "oilstyle", 0.8)]


def contender(
    cell: str, low: float, *, method: str = "weighted", shares: tuple[float, ...] = (0.5, 0.5),
    feasible: bool | None = True, left: tuple[float, float] = (0.6, 0.5),
) -> Contender:  # fmt: skip
    kept = {
        name: Estimate(value=value, low=value - 0.1, high=value + 0.1)
        for name, value in zip(("ink", "wash"), left, strict=True)
    }
    candidate = MixCandidate(
        cell=cell, mix={"ink": 0.5, "wash": 0.5}, method=method, retention=kept,
        least=Estimate(value=low + 0.1, low=low, high=low + 0.2), balance=Estimate(value=0.8),
        fidelity=Estimate(value=0, low=-1, high=1), feasible=feasible, reasons=() if feasible else ("too dull",),
    )  # fmt: skip
    return Contender(candidate, shares)


def apart(_: str, __: str) -> Estimate:
    return Estimate(value=0.2, low=0.1, high=0.3)


def alike(_: str, __: str) -> Estimate:
    return Estimate(value=0.01, low=-0.1, high=0.12)


def decided(contenders: Sequence[Contender], difference: Any = apart) -> Decision:
    found = decide(contenders, difference)
    assert found is not None
    return found


def test_the_highest_lower_bound_of_the_least_retention_is_chosen():
    few = [contender("even", 0.3), contender("slanted", 0.5, shares=(0.7, 0.3)), contender("low", 0.1)]
    assert decided(few).chosen.cell == "slanted"


def test_what_cannot_be_told_apart_goes_to_the_cheaper_method_then_to_even_weights():
    every = [
        contender("composite", 0.6, method="composite"),
        contender("switch", 0.5, method="switch"),
        contender("slanted", 0.4, shares=(0.7, 0.3)),
        contender("even", 0.2),
    ]
    found = decided(every, alike)
    assert (found.leader.cell, found.chosen.cell) == ("composite", "even")
    assert decided(every[:3], alike).chosen.cell == "slanted"
    assert decided(every[:2], alike).chosen.cell == "switch"
    assert decided(every, apart).chosen.cell == "composite"
    assert decided(every, lambda *_: Estimate(value=0.3)).chosen.cell == "even", "no interval, no difference"


def test_bounds_come_first_then_what_could_not_be_looked_at_then_the_rest():
    dull = contender("dull", 0.9, feasible=False)
    unknown = contender("unknown", 0.8, feasible=None)
    good = contender("good", 0.1)
    assert decided([dull, unknown, good]).chosen.cell == "good"
    assert decided([dull, unknown]).chosen.cell == "unknown"
    assert not decided([dull, unknown]).fallback
    assert decided([dull]).fallback


def test_where_nothing_is_measured_nothing_is_decided():
    lost = contender("even", 0.3)
    lost = dataclasses.replace(lost, candidate=lost.candidate.model_copy(update={"least": Estimate(value=None)}))
    assert decide([lost], apart) is None


@given(st.permutations(range(4)))
def test_the_order_in_which_candidates_come_changes_nothing(order: list[int]):
    every = [contender(name, low, method=name) for name, low in zip(COST, (0.3, 0.5, 0.4), strict=True)]
    every.append(contender("slanted", 0.45, shares=(0.7, 0.3)))
    assert decided([every[at] for at in order], alike).chosen.cell == "weighted"


def test_the_sentence_names_what_is_left_who_loses_and_why():
    few = [contender("even", 0.5, left=(0.9, 0.5)), contender("switch", 0.3, method="switch")]
    told = explain(decided(few), few, None)
    assert "0.90 (0.80 to 1.00) of ink and 0.50 (0.40 to 0.60) of wash is left; wash loses most." in told
    assert "highest lower bound of 2 tried, 2 within the bounds" in told
    assert "LoRA Switch did not earn its place." in told
    whole = [contender("even", 0.9, left=(1.1, 1.0))]
    assert "none of them loses" in explain(decided(whole), whole, None)
    close = [contender("even", 0.5, left=(0.55, 0.5))]
    assert "wash seems to lose most" in explain(decided(close), close, close[0].candidate)
    assert "On the prompts that it was not chosen by" in explain(decided(close), close, close[0].candidate)


def test_the_sentence_tells_of_ties_of_methods_that_earn_their_place_and_of_broken_bounds():
    tied = [contender("slanted", 0.5, shares=(0.7, 0.3)), contender("even", 0.4)]
    told = explain(decided(tied, alike), tied, None)
    assert "slanted has the highest lower bound" in told
    assert "cannot be told from it (difference +0.01 (-0.10 to +0.12)), and this one is more even" in told
    earned = [contender("even", 0.2), contender("switch", 0.5, method="switch")]
    assert "LoRA Switch earns its place" in explain(decided(earned), earned, None)
    alone = [contender("even", 0.6, feasible=False), contender("switch", 0.5, method="switch")]
    assert "LoRA Switch is advised because no weighted sum is within the bounds." in explain(
        decided(alone), alone, None
    )
    broken = [contender("even", 0.2, feasible=False)]
    assert "No candidate is within the bounds (too dull)" in explain(decided(broken), broken, None)


def test_shares_are_the_weights_of_styles_that_are_recommended_alike():
    assert weights_of((0.5, 0.5), (0.8, 0.8)) == (0.5, 0.5)
    assert weights_of((0.3, 0.7), (0.8, 0.8)) == (0.3, 0.7)
    assert weights_of((1 / 3, 1 / 3, 1 / 3), (0.8, 0.8, 0.8)) == (0.33, 0.33, 0.33)


def test_a_style_that_is_best_at_a_low_weight_gets_less():
    assert weights_of((0.5, 0.5), (0.4, 0.8)) == (0.33, 0.66)
    assert weights_of((0.5, 0.5), (0.3, 0.3)) == (0.3, 0.3), "each as strong as it is recommended alone"


_shares = st.lists(st.floats(0.1, 1), min_size=2, max_size=3)


@given(_shares, st.lists(st.floats(0.2, 2), min_size=3, max_size=3))
def test_no_mix_is_stronger_than_its_shares_nor_a_style_than_alone(shares: list[float], recommended: list[float]):
    weights = weights_of(shares, recommended[: len(shares)])
    assert sum(weights) <= sum(shares) + 0.03
    assert all(0 < weight <= most + 1e-6 for weight, most in zip(weights, recommended, strict=False))


def test_switch_is_as_strong_over_the_steps_as_the_sum_and_composite_shares_by_weight():
    assert method_weights("switch", (0.3, 0.5), (0.8, 0.8)) == (0.6, 0.8)
    assert method_weights("composite", (0.3, 0.7), (0.8, 0.8)) == (0.3, 0.7)
    assert method_options("switch", 2, 25).every == 5
    assert method_options("switch", 3, 6).every == 2
    assert method_options("composite", 2, 25).shares == "weights"


def test_a_cells_name_tells_the_method():
    cell = mix_cell(PARTS[:2], (0.5, 0.5), method="switch")
    assert (cell.name, cell.folder) == ("ink 0.8 + wash 0.8, switch", "ink_0.8+wash_0.8_switch")
    assert cell.prompt("a cat") == "inkstyle, washstyle, a cat"


def test_prompts_are_halved_where_there_are_enough():
    assert prompt_halves(np.repeat(np.arange(4), 2)) == ([0, 1, 2, 3], ())
    assert prompt_halves(np.arange(9)) == ([0, 2, 4, 6, 8], [1, 3, 5, 7])


def sight_of(**changes: Any) -> Sight:
    grid = seen(**changes)
    return Sight("CSD", grid, grid)


def planned(*shares: tuple[float, ...], parts: Sequence[Ingredient] = PARTS[:2]) -> list[PlannedCell]:
    return [mix_cell(parts, each) for each in shares]


def test_a_candidates_numbers_are_the_metrics_own():
    sight = sight_of()
    grid, cell = sight.style, "ink 0.5 + wash 0.5"
    assert grid is not None
    found = measure_candidate(planned((0.5, 0.5))[0], sight, SETTINGS)
    assert found.least.value == mixes.measure_mix_retention(grid, cell).value
    assert found.balance.value == mixes.measure_mix_balance(grid, cell).value
    assert found.fidelity.value == measure_clip_difference(grid, cell).value
    assert found.retention["ink"].value == mixes.style_retention(grid, cell, "ink").value
    assert found.least.low is not None


def test_bounds_are_held_against_the_numbers_and_what_is_unknown_is_not_within():
    sight, cell = sight_of(), planned((0.5, 0.5))[0]
    strict = SETTINGS.model_copy(update={"min_balance": 1.0, "min_mix_fidelity": -1e-9})
    found = measure_candidate(cell, sight, strict)
    assert found.feasible is False
    assert found.reasons[0].startswith("CLIP score -")
    assert found.reasons[1].startswith("balance 0.")
    loose = SETTINGS.model_copy(update={"min_balance": 0.0, "min_mix_fidelity": -100.0})
    assert measure_candidate(cell, sight, loose).feasible is True
    unread = measure_candidate(cell, dataclasses.replace(sight, prompts=None), loose)
    assert (unread.feasible, unread.fidelity.value) == (None, None)
    blind = measure_candidate(cell, Sight("", None, None, "none"), loose)
    assert blind.least.note.startswith("not measured")


def test_the_difference_of_two_mixes_is_paired():
    """A mix against itself is 0 without doubt, though each alone has an interval."""
    two = {"ink 0.5 + wash 0.5": {"ink": 0.5, "wash": 0.5}, "ink 0.7 + wash 0.3": {"ink": 0.7, "wash": 0.3}}
    grid = seen()
    same = grid.cells["ink 0.5 + wash 0.5"]
    sight = sight_of(layout=layout(mixes=two), cells={**grid.cells, "ink 0.7 + wash 0.3": same})
    found = measure_difference(sight, "ink 0.5 + wash 0.5", "ink 0.7 + wash 0.3")
    assert found.value == 0
    assert (found.low or 0.0, found.high or 0.0) == (0.0, 0.0)
    other = sight_of(layout=layout(mixes=two), cells={**grid.cells, "ink 0.7 + wash 0.3": grid.cells["base"]})
    better = measure_difference(other, "ink 0.5 + wash 0.5", "ink 0.7 + wash 0.3")
    assert better.low is not None
    assert better.low > 0


def test_the_encoder_is_the_first_that_is_real_and_can_tell_styles_apart():
    real = Embedder(Identity("real", "", meaningful=True), lambda: Towers(lambda _: np.zeros((1, 1))))
    made_up = Embedder(Identity("made-up", "", meaningful=False), lambda: Towers(lambda _: np.zeros((1, 1))))
    grid = seen()
    every: Any = {"csd": grid, "clip": grid}
    assert find_sight(every, {"csd": real, "clip": made_up}, base_random=False).encoder == "real"
    fallen = find_sight(every, {"csd": made_up, "clip": real}, base_random=False)
    assert (fallen.encoder, fallen.blind) == ("real", "")
    none = find_sight(every, {"csd": made_up, "clip": made_up}, base_random=False)
    assert none.blind == "no real encoder of style took part"
    assert "random numbers" in find_sight(every, {"csd": real, "clip": real}, base_random=True).blind
    mixed: Any = {"csd": seen(others={"wash": grid.trained}), "clip": grid}
    unfit = find_sight(mixed, {"csd": real, "clip": real}, base_random=False)
    assert unfit.style is grid


def test_triples_are_even_where_nothing_tells_which_partners_mix_best():
    mixing = Mixing(PARTS, EvaluateSection())
    assert [cell.name for cell in default_triples(mixing)] == ["ink 0.33 + wash 0.33 + oil 0.33"]
    assert default_triples(Mixing(PARTS[:2], EvaluateSection())) == []
    assert default_triples(Mixing(PARTS, EvaluateSection(triple_partners=0))) == []


# A world of colours: a style is a colour, an adapter paints it as strongly as its weight, the encoder reads the mean colour.
COLOURS = {"cartoon": (1.0, 0.0, 0.0), "anime": (0.0, 1.0, 0.0), "ink": (0.0, 0.0, 1.0)}
_TASTE = 30.0


class Painter(FakeGenerator):
    """Two styles fight: of each of cartoon and ink half is lost where both act at once, and nothing where they take turns."""

    def generate_jobs(self, jobs: Sequence[ImageJob], sampling: Sampling | None = None):
        assert sampling
        self.asked.append((list(jobs), sampling))
        for index, job in enumerate(jobs):
            yield index, paint(job)


def paint(job: ImageJob) -> Image.Image:
    weights = {str(name): float(weight) for name, weight in job.mix if isinstance(weight, float)}
    fight = {"cartoon", "ink"} <= weights.keys() and job.method is None
    share = 1 / len(weights) if job.method == "switch" else 1.0
    colour = np.full(3, 110.0)
    for name, weight in weights.items():
        lost = 0.5 if fight and name in {"cartoon", "ink"} else 1.0
        colour += _TASTE * 3 * weight * share * lost * (np.array(COLOURS[name]) - 1 / 3)
    random = np.random.default_rng(zlib.crc32(repr((job.prompt[-12:], job.seed)).encode()))
    colour += random.normal(scale=3.0, size=3)
    noise = random.integers(-9, 10, (64, 64, 1))
    return Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8))


def taste(images: Sequence[Image.Image]) -> np.ndarray:
    """The mean colour, less grey, beside a constant."""
    means = np.stack([np.asarray(image.convert("RGB"), dtype=np.float64).mean(axis=(0, 1)) for image in images])
    return np.concatenate([means - means.mean(axis=1, keepdims=True), np.full((len(means), 1), _TASTE)], axis=1)


def colour_eyes(spec: StyleSpec) -> dict[Any, Any]:
    eyes = Embedder(Identity("colour", "c", meaningful=True), lambda: Towers(taste))
    words = Embedder(
        Identity("words", "w", meaningful=True),
        lambda: Towers(lambda images: np.ones((len(images), 4)), lambda texts: np.ones((len(texts), 4))),
    )
    return as_if_real(spec) | {"csd": eyes, "clip": words}


def colour_run(
    root: Path, patch: pytest.MonkeyPatch, own: str = "cartoon", others: Sequence[str] = ("anime", "ink"), **changes: Any
) -> tuple[EvalReport, Path]:  # fmt: skip
    """A style's evaluation with references in its colour."""
    patch.setattr("eval.look.load_extractors", colour_eyes)
    settings = SETTINGS.model_copy(
        update={
            "prompts": tuple(f"picture {n:02}" for n in range(8)),
            "seeds": (1,),
            "steps": 12,
            "weights": (),
            "trigger_cells": False,
            "min_balance": 0.0,
        }
        | changes
    )
    record = trained(own, "base")
    run = add_run(root, own, "1", record)
    for other in others:
        other_run = add_run(root, other, "1", trained(other, "base"))
        add_references(other_run, turned=0)
        tint(other_run.images, other)
    spec = make_spec(own).model_copy(update={"evaluate": settings})
    patch.setattr("eval.rounds.find_pictures", tinted(own))
    report, workdir, _ = run_stage(run, spec, record, patch, held=6, generator=Painter)
    return report, workdir


def tint(folder: Path, style: str) -> None:
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        colour = (
            110
            + _TASTE * 3 * (np.array(COLOURS[style]) - 1 / 3)
            + np.random.default_rng(number).normal(scale=4, size=3)
        )
        Image.fromarray(np.broadcast_to(colour.astype(np.uint8), (80, 96, 3)).copy()).save(path)


def tinted(own: str) -> Any:
    """eval.references.find_pictures, of a run whose own pictures have been given their colour."""
    from eval.references import find_pictures

    def find(context: Any, *rest: Any) -> Any:
        tint(context.run.images, own)
        return find_pictures(context, *rest)

    return find


def test_the_stage_tries_weights_then_methods_with_the_best_and_triples_and_explains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    report, workdir = colour_run(tmp_path, monkeypatch)
    choices = {choice.styles: choice for choice in report.mix_choices}
    assert list(choices) == [("cartoon", "anime"), ("cartoon", "ink"), ("cartoon", "anime", "ink")]
    harmless, fighting = choices["cartoon", "anime"], choices["cartoon", "ink"]
    assert [each.cell for each in harmless.candidates] == [
        "cartoon 0.5 + anime 0.5", "cartoon 0.3 + anime 0.7", "cartoon 0.7 + anime 0.3",
        "cartoon 0.8 + anime 0.8, switch", "cartoon 0.5 + anime 0.5, composite",
    ]  # fmt: skip
    assert harmless.meaningful
    assert (harmless.decided_by, harmless.encoder) == ("retention", "colour")
    assert harmless.chosen.mix == {"cartoon": 0.5, "anime": 0.5}
    assert harmless.chosen.method == "weighted", harmless.reason
    assert fighting.chosen.method in {"switch", "composite"}, fighting.reason
    assert "earns its place" in fighting.reason
    assert fighting.as_sum is not None
    assert fighting.as_sum.method == "weighted"
    assert harmless.as_sum == harmless.chosen
    assert losing_style(fighting.chosen) in fighting.reason
    assert harmless.reported is not None
    assert harmless.reported.cell == harmless.chosen.cell
    assert harmless.adapters == {"cartoon": "cartoon", "anime": "anime"}
    triple = choices["cartoon", "anime", "ink"]
    assert {each.method for each in triple.candidates} == {"weighted", "switch", "composite"}
    cells = {cell.name: cell for cell in (*report.cells, *report.more_cells)}
    assert {each.cell for choice in choices.values() for each in choice.candidates} <= set(cells)
    assert cells["cartoon 0.8 + anime 0.8, switch"].method == "switch"
    assert {choice.chosen.cell for choice in choices.values()} <= {cell.name for cell in report.cells}
    assert len({path for cell in cells.values() for path in cell.images}) == 8 * len(cells)
    assert json.loads((workdir / "scores.json").read_text())["mix_choices"][0]["reason"] == harmless.reason
    interfered = {score.cell for score in report.scores if score.metric == "mix_interference_csd"}
    assert not any("switch" in cell or "composite" in cell for cell in interfered)
    assert "cartoon 0.8 + anime 0.8, switch" in {s.cell for s in report.scores if s.metric == "mix_retention_csd"}


def test_where_nothing_means_anything_the_default_is_advised_and_no_method_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = trained("own", "base")
    run = add_run(tmp_path, "cartoon", "1", record)
    for other in ("anime", "ink"):
        add_run(tmp_path, other, "1", trained(other, "base"))
    report, _, _ = run_stage(run, make_spec(), record, monkeypatch)
    assert [choice.chosen.cell for choice in report.mix_choices] == [
        "cartoon 0.5 + anime 0.5", "cartoon 0.5 + ink 0.5", "cartoon 0.33 + anime 0.33 + ink 0.33",
    ]  # fmt: skip
    for choice in report.mix_choices:
        assert (choice.decided_by, choice.meaningful) == ("default", False)
        assert "not a choice, since no real encoder of style took part." in choice.reason
        assert {each.method for each in choice.candidates} == {"weighted"}
        assert choice.chosen.least.value is None


def test_without_triples_and_methods_only_weights_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    report, _ = colour_run(tmp_path, monkeypatch, triple_partners=0, mix_methods=(), pair_sweep=())
    assert [len(choice.candidates) for choice in report.mix_choices] == [1, 1]


def test_a_chooser_measures_what_it_asked_for_once_and_then_wants_nothing():
    mixing = Mixing(PARTS[:2], SETTINGS)
    first = planned((0.5, 0.5))
    chooser = Chooser(mixing, first, sight_of())
    wanted = chooser.next_cells()
    assert [cell.method for cell in wanted] == ["switch", "composite"]
    known = seen(layout=layout(mixes={cell.name: dict(cell.mix) for cell in (*first, *wanted)}))
    rows = {cell.name: known.cells["ink 0.5 + wash 0.5"] for cell in wanted}
    sight = Sight("CSD", dataclasses.replace(known, cells={**known.cells, **rows}), None)
    assert Chooser(mixing, [*first, *wanted], sight).next_cells() == []


def pair_choice(own: str, other: str, kept: tuple[float, float], *, predicted: float = 0.0, sha: str = "") -> MixChoice:
    retention = dict(zip((own, other), (Estimate(value=value, low=0.0, high=1.0) for value in kept), strict=True))
    candidate = MixCandidate(
        cell=f"{own} 0.5 + {other} 0.5", mix={own: 0.5, other: 0.5}, method="weighted", retention=retention,
        least=Estimate(value=min(kept)), balance=Estimate(value=None), fidelity=Estimate(value=None), feasible=True,
    )  # fmt: skip
    return MixChoice(
        styles=(own, other), chosen=candidate, decided_by="retention", reason="", meaningful=True, encoder="CSD",
        candidates=(candidate,), predicted=Prediction(additivity=predicted, effect_cosine=-predicted, weights_cosine=0.0),
        adapters={own: own, other: sha or other},
    )  # fmt: skip


def report_with(*choices: MixChoice) -> EvalReport:
    return EvalReport(
        cells=(), scores=(), grid="", prompts=(), seeds=(), meaningful=True, notes=(), mix_choices=tuple(choices)
    )


def test_the_projects_matrix_tells_each_row_by_its_own_run_and_says_what_is_missing():
    reports = {
        "a": report_with(pair_choice("a", "b", (0.9, 0.4))),
        "b": report_with(pair_choice("b", "a", (0.5, 0.8), sha="older")),
        "c": report_with(),
    }
    found = interference(reports)
    assert (found.rows, found.columns, found.extractor, found.meaningful) == (("a", "b", "c"),) * 2 + ("CSD", True)
    values = [[entry.value for entry in row] for row in found.entries]
    assert values == [[None, 0.9, None], [0.5, None, None], [None, None, None]]
    assert found.entries[0][0].note == "a style is not mixed with itself"
    assert found.entries[0][2].note == "not measured: neither run of a and c mixes the two"
    assert found.entries[0][1].note == "a 0.5 + b 0.5"
    assert "an adapter of a that its run no longer has" in found.entries[1][0].note
    assert not interference({"a": report_with()}).meaningful


def test_the_matrix_takes_what_was_not_chosen_by_or_all_prompts():
    choice = pair_choice("a", "b", (0.9, 0.4))
    matrix = Matrix(
        name="mix_retention_csd", rows=("a 0.5 + b 0.5",), columns=("a", "b"), extractor="CSD", meaningful=True,
        entries=((Estimate(value=0.7), Estimate(value=0.3)),),
    )  # fmt: skip
    others = {"b": report_with()}
    all_prompts = {"a": report_with(choice).model_copy(update={"matrices": (matrix,)}), **others}
    assert interference(all_prompts).entries[0][1].value == 0.7
    kept = {"a": Estimate(value=0.6), "b": Estimate(value=0.2)}
    told = choice.model_copy(update={"reported": choice.chosen.model_copy(update={"retention": kept})})
    assert interference({"a": report_with(told), **others}).entries[1][0].value == 0.2


def test_predictions_are_held_against_measurements_from_four_pairs_on():
    lost = {("a", "b"): 0.9, ("a", "c"): 0.7, ("a", "d"): 0.5, ("a", "e"): 0.2}
    choices = [pair_choice(*pair, (1.0, kept), predicted=1 - kept) for pair, kept in lost.items()]
    others = {name: report_with() for name in "bcde"}
    found = {each.name: each for each in agreements({"a": report_with(*choices), **others})}
    assert found["additivity"].rho == pytest.approx(1.0)
    assert found["effects"].rho == pytest.approx(1.0)
    assert found["additivity"].low is not None
    assert len(found["additivity"].pairs) == 4
    assert (found["weights"].rho, found["weights"].note) == (None, "not measured: all pairs are equal on one side")
    few = agreements({"a": report_with(*choices[:3]), **others})
    assert {each.note[:21] for each in few} == {"not measured: 3 pairs"}
