"""The grid keeps to the minutes that choosing left: fewer prompts, no further rounds, and it says so."""

from __future__ import annotations

from typing import Any

import pytest

from brushset.log import silent
from brushset.records import Choice
from brushset.spec import EvaluateSection
from eval.grid_budget import GridBudget
from eval.pace import LEAST_PROMPTS


def after(images: int, seconds: float, granted: float | None) -> GridBudget:
    choice = Choice(
        weights="weights/a", weights_sha256="", epoch=1, weight=0.8, decided_by="default", feasible=True, reason="",
        meaningful=False, images=images, seconds=seconds,
    )  # fmt: skip
    return GridBudget.after(choice, granted)


@pytest.fixture
def settings() -> EvaluateSection:
    return EvaluateSection(prompts=tuple(f"thing {number}" for number in range(32)), seeds=(1, 2))


class Heard(list[str]):
    def __call__(self, _event: str, /, **fields: Any) -> None:
        self.append(fields["text"])


def test_without_a_budget_nothing_is_left_out_and_the_cost_is_said(settings: EvaluateSection) -> None:
    budget, heard = after(100, 50.0, None), Heard()
    assert budget.fit(settings, 10, heard) is settings
    assert heard == ["10 cells of 64 images: 640 images, about 5.3 minutes"]
    assert list(budget.prompts_within(settings, 10, heard)) == [list(range(32))]
    assert list(budget.cells_within(["a", "b"], 10**9, heard)) == [["a", "b"]]


def test_prompts_are_left_out_evenly_to_keep_to_what_choosing_left(settings: EvaluateSection) -> None:
    budget, heard = after(100, 60.0, 4.0), Heard()  # three minutes are left: 300 images at 0.6 s
    found = budget.fit(settings, 10, heard)
    assert len(found.prompts) == 15  # 10 cells × 2 seeds × 15 prompts
    assert found.prompts[0] == "thing 0"
    assert found.prompts[-1] == "thing 31"
    gaps = {int(b.split()[1]) - int(a.split()[1]) for a, b in zip(found.prompts, found.prompts[1:], strict=False)}
    assert gaps <= {2, 3}
    (note,) = budget.notes
    assert note == heard[1]
    assert note == (
        "to keep to the budget, of which choosing left 3 minutes: 17 of 32 prompts are left out, at 0.6 s an image"
    )


def test_enough_time_leaves_all(settings: EvaluateSection) -> None:
    assert after(100, 60.0, 60.0).fit(settings, 10, silent) is settings


def test_with_no_time_left_the_fewest_prompts_stay_and_no_round_follows(settings: EvaluateSection) -> None:
    budget = after(100, 60.0, 0.5)
    assert len(budget.fit(settings, 10, silent).prompts) == LEAST_PROMPTS
    assert list(budget.cells_within(["a", "b"], 1000, silent)) == []
    assert "2 of 2 other methods and triples of mixes were not tried" in budget.notes[-1]


def test_within_the_first_round_prompts_are_left_out_where_images_come_slower_than_choosing_had_them(
    settings: EvaluateSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, heard = after(100, 60.0, 8.0), Heard()  # seven minutes are left: 32 prompts × 20 images at 0.6 s are 6.4
    now = budget._started
    monkeypatch.setattr("eval.pace.time.monotonic", lambda: now)
    assert budget.fit(settings, 10, heard) is settings
    drawn: list[int] = []
    for some in budget.prompts_within(settings, 10, heard):
        now += 20 * len(some) * 1.0  # a second each, and looking
        drawn += some
    assert LEAST_PROMPTS < len(drawn) < 20
    assert now - budget._started <= 7 * 60
    assert heard[-1] == budget.notes[-1]
    assert heard[-1].endswith(f"{32 - len(drawn)} of 32 prompts were not drawn, at 1.3 s an image")


def test_fewer_prompts_than_the_fewest_stay_as_they_are() -> None:
    two = EvaluateSection(prompts=("a", "b"), seeds=(1,))
    budget = after(100, 60.0, 0.5)
    assert budget.fit(two, 10, silent).prompts == ("a", "b")
    assert budget.notes == []


def test_where_choosing_made_no_image_no_speed_is_known(settings: EvaluateSection) -> None:
    heard = Heard()
    assert after(0, 1.0, 1.0).fit(settings, 10, heard) is settings
    assert heard == ["10 cells of 64 images: 640 images"]
