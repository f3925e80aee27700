"""What runs of a sweep have in common is done once."""

from __future__ import annotations

from typing import Any

import orchestrate
from brushset.spec import StyleSpec
from brushset.sweeps.sharing import Leg, find_shared_legs

IMAGES = {"a.png": "0"}


def legs(*changes: dict[str, Any], names: tuple[str, ...] = ("cartoon",)) -> list[Leg]:
    specs = [StyleSpec.model_validate({"name": name, "trigger": "t", **change}) for name in names for change in changes]
    return find_shared_legs(specs, [IMAGES] * len(specs), orchestrate.STAGES)


def test_runs_that_differ_in_training_are_captioned_once() -> None:
    assert legs({"train": {"seed": 1}}, {"train": {"seed": 2}}, {"train": {"network_dim": 8}}) == [Leg("caption", (0,))]


def test_where_the_size_differs_the_audit_is_shared_and_captions_are_made_once_a_size() -> None:
    sizes = [{"dataset": {"resolution": size}, "train": {"seed": seed}} for size in (512, 768) for seed in (1, 2)]
    found = legs(*sizes)
    assert found[-1] == Leg("caption", (0, 2))
    assert all(set(leg.places) <= {0, 2} for leg in found)


def test_what_differs_in_evaluation_alone_is_still_trained_by_each() -> None:
    assert legs({"evaluate": {"steps": 10}}, {"evaluate": {"steps": 20}}) == [Leg("configure", (0,))]


def test_runs_of_different_styles_or_a_single_one_share_nothing() -> None:
    assert legs({"train": {"seed": 1}}) == []
    assert legs({"train": {"seed": 1}}, names=("cartoon", "anime")) == []


def test_other_images_are_no_common_ground() -> None:
    specs = [StyleSpec(name="cartoon", trigger="t")] * 2
    assert find_shared_legs(specs, [IMAGES, {"b.png": "1"}], orchestrate.STAGES) == []
