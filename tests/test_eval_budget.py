"""The grid keeps to the minutes that choosing left: fewer prompts, no further rounds, and it says so."""

from __future__ import annotations

from typing import Any

import pytest

from brushset.log import silent
from brushset.records import Choice
from brushset.spec import EvaluateSection
from eval.grid_budget import LEAST_PROMPTS, GridBudget


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
    assert budget.has_time_for(10**9, heard)


def test_prompts_are_left_out_evenly_to_keep_to_what_choosing_left(settings: EvaluateSection) -> None:
    budget, heard = after(100, 60.0, 4.0), Heard()  # three minutes are left: 300 images at 0.6 s
    found = budget.fit(settings, 10, heard)
    assert len(found.prompts) == 15  # 10 cells × 2 seeds × 15 prompts
    assert found.prompts[0] == "thing 0"
    assert found.prompts[-1] == "thing 31"
    gaps = {int(b.split()[1]) - int(a.split()[1]) for a, b in zip(found.prompts, found.prompts[1:], strict=False)}
    assert gaps <= {2, 3}
    assert budget.notes == ["to keep to the budget: 15 of 32 prompts"] == heard[1:]


def test_enough_time_leaves_all(settings: EvaluateSection) -> None:
    assert after(100, 60.0, 60.0).fit(settings, 10, silent) is settings


def test_with_no_time_left_the_fewest_prompts_stay_and_no_round_follows(settings: EvaluateSection) -> None:
    budget = after(100, 60.0, 0.5)
    assert len(budget.fit(settings, 10, silent).prompts) == LEAST_PROMPTS
    assert not budget.has_time_for(1, silent)
    assert budget.notes[-1].endswith("were not tried")


def test_fewer_prompts_than_the_fewest_stay_as_they_are() -> None:
    two = EvaluateSection(prompts=("a", "b"), seeds=(1,))
    budget = after(100, 60.0, 0.5)
    assert budget.fit(two, 10, silent).prompts == ("a", "b")
    assert budget.notes == []


def test_where_choosing_made_no_image_no_speed_is_known(settings: EvaluateSection) -> None:
    heard = Heard()
    assert after(0, 1.0, 1.0).fit(settings, 10, heard) is settings
    assert heard == ["10 cells of 64 images: 640 images"]
