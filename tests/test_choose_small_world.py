"""The stage `choose` where LoRAs really learn: too few pictures, half of them without a word of what they show, and too long."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from brushset.chosen import load_choice
from brushset.records import BaseFile, Choice
from small_world.embedder import small_extractors
from small_world.measure import prompts
from small_world.runs import make_runs
from small_world.styles import TRIGGERS, make_style

BOUNDS = {"min_fidelity": -15.0}  # the small world's CLIP score reads one of a handful of words, or it does not
LONG = {"unet_lr": 5e-3, "text_encoder_lr": 2e-3, "epochs": 60, "batch_size": 6, "save_every_n_epochs": 12}


@pytest.fixture(scope="module")
def choice(small_base: BaseFile, tmp_path_factory: pytest.TempPathFactory) -> Choice:
    """Twelve pictures trained on and four held out, of a style that comes gradually."""
    pictures = [
        dataclasses.replace(picture, caption=f"{TRIGGERS['dusk']}, a picture") if number % 2 else picture
        for number, picture in enumerate(make_style("dusk", 16, 1))
    ]
    folder = tmp_path_factory.mktemp("overtrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.look.load_extractors", small_extractors)
        patch.setenv("BRUSHSET_CACHE", str(folder / "cache"))
        runs = make_runs(
            Path(folder), small_base, {"dusk": pictures}, until="choose", train=LONG,
            evaluate={"prompts": tuple(prompts(16)), "weights": (0.6, 1.0), **BOUNDS},
        )  # fmt: skip
    found = load_choice(runs["dusk"])
    assert found
    return found


def test_the_chosen_checkpoint_is_neither_the_first_nor_the_overtrained_last(choice: Choice):
    assert (choice.decided_by, choice.feasible, choice.meaningful) == ("retention", True, True)
    assert choice.epoch not in (12, 60)
    assert choice.reported
    assert (choice.reported.retention.low or 0) > 0
    assert "the base with style words 0%" in choice.reason


def test_memorisation_flags_the_overtrained_last_and_not_the_chosen_one(choice: Choice):
    by_way = {(each.epoch, each.weight): each for each in choice.candidates}
    last, chosen = by_way[60, 1.0], by_way[choice.epoch, choice.weight]
    assert "memorisation" in last.breaks
    assert chosen.breaks == ()
    assert (last.memorisation.value or 0) > (chosen.memorisation.value or 0)
