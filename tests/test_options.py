"""The command line adds up to specs."""

from __future__ import annotations

from pathlib import Path

import pytest

from brushset.cli.options import Options, load_spec, spread_values
from brushset.cli.sources import images_by_style, style_names
from brushset.errors import UsageError


def test_several_words_after_one_flag_become_several_flags() -> None:
    argv = ["inference", "--prompts", "a girl", "a lake", "--seed", "3", "--loras", "anime:0.6", "cartoon"]
    assert spread_values(argv, ("--prompts", "--loras")) == [
        "inference", "--prompts", "a girl", "--prompts", "a lake", "--seed", "3", "--loras", "anime:0.6", "--loras", "cartoon",
    ]  # fmt: skip


def test_all_takes_every_style_file() -> None:
    assert style_names(Options(style=["all"])) == ["anime", "cartoon", "watercolor"]
    assert style_names(Options(smoke=True)) == ["anime", "cartoon", "watercolor"]
    assert style_names(Options(runs_dir=Path("/nowhere"))) == ["anime", "cartoon", "watercolor"]


def test_three_folders_in_one_command_name_the_styles() -> None:
    options = Options(images=["anime=/a", "watercolor=/w", "cartoon=/c"])
    assert style_names(options) == ["anime", "watercolor", "cartoon"]
    assert images_by_style(options) == {"anime": Path("/a"), "watercolor": Path("/w"), "cartoon": Path("/c")}


def test_a_folder_with_an_equals_sign_in_its_name_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    assert images_by_style(Options(images=[str(folder)])) == {"": folder}


def test_options_win_over_the_smoke_profile() -> None:
    spec = load_spec("cartoon", Options(smoke=True, epochs=3, batch_size=7, seed=9), images=None)
    assert (spec.train.epochs, spec.train.max_steps, spec.train.batch_size, spec.train.seed) == (3, None, 7, 9)
    assert spec.smoke


def test_a_budget_is_minutes_of_choosing() -> None:
    assert load_spec("cartoon", Options(budget=5.0), images=None).evaluate.budget_minutes == 5.0
    assert load_spec("cartoon", Options(), images=None).evaluate.budget_minutes is None
    with pytest.raises(UsageError, match="--budget"):
        load_spec("cartoon", Options(budget=0.0), images=None)


def test_an_unknown_style_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match=r'styles/cartoons\.toml: no such style; did you mean "cartoon"\?'):
        load_spec("cartoons", Options(), images=None)


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="h100, smoke"):
        load_spec("cartoon", Options(profile=["h200"]), images=None)


def test_a_wrong_option_is_named_as_typed() -> None:
    with pytest.raises(UsageError, match=r"^--engine: input should be 'auto', 'kohya' or 'native'"):
        load_spec("cartoon", Options(engine="koyha"), images=None)


def test_options_before_the_subcommand_count_too() -> None:
    both = Options(seed=1).laid_over(Options(style=["anime"], seed=2))
    assert (both.style, both.seed) == (["anime"], 1)
