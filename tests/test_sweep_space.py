"""Which settings a sweep tries, told of a command line or a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from brushset.errors import UsageError
from brushset.load import parse_setting
from brushset.sweeps.space import as_setting, draw_points, multiply, parse_grid, parse_ranges, read_list, varied


def test_a_grid_is_every_combination_the_last_one_changing_fastest() -> None:
    points = parse_grid(["train.network_dim=8,16", "train.unet_lr=5e-5,1e-4"])
    assert points == [
        {"train.network_dim": dim, "train.unet_lr": rate} for dim in (8, 16) for rate in (5e-5, 1e-4)
    ]  # fmt: skip


def test_a_grids_values_may_be_words_lists_and_truths() -> None:
    assert [list(point.values()) for point in parse_grid(["train.optimizer=AdamW, Lion"])] == [["AdamW"], ["Lion"]]
    assert [list(point.values()) for point in parse_grid(["evaluate.seeds=[1, 2],[3]"])] == [[[1, 2]], [[3]]]
    assert [list(point.values()) for point in parse_grid(["train.flip_aug=true,false,true"])] == [[True], [False]]


@pytest.mark.parametrize("text", ["train.network_dim", "network_dim=8", "train.network_dim=", "=8", "train.x=1,,2"])
def test_what_is_no_axis_is_told_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"--grid"):
        parse_grid([text])


def test_everything_wrong_with_a_grid_is_told_at_once() -> None:
    with pytest.raises(UsageError) as told:
        parse_grid(["network_dim=8", "train.unet_lr"])
    assert len(str(told.value).splitlines()) == 2


def test_an_axis_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="given twice"):
        parse_grid(["train.network_dim=8", "train.network_dim=16"])


def test_the_same_seed_draws_the_same_points_within_the_bounds() -> None:
    ranges = parse_ranges(["train.unet_lr=1e-5..5e-4:log", "train.network_dim=4..64"])
    points = draw_points(ranges, 200, 7)
    assert points == draw_points(ranges, 200, 7) != draw_points(ranges, 200, 8)
    assert len({str(point) for point in points}) == 200
    assert all(1e-5 <= point["train.unet_lr"] <= 5e-4 for point in points)
    assert all(type(point["train.network_dim"]) is int and 4 <= point["train.network_dim"] <= 64 for point in points)


def test_log_draws_every_octave_as_often_and_without_it_most_lie_high() -> None:
    below = [
        sum(point["train.unet_lr"] < 7e-5 for point in draw_points(parse_ranges([text]), 400, 1))
        for text in ("train.unet_lr=1e-5..5e-4:log", "train.unet_lr=1e-5..5e-4")
    ]
    assert 160 < below[0] < 240  # 7e-5 is about the geometric middle
    assert below[1] < 90


def test_of_few_whole_numbers_no_more_are_drawn_than_there_are() -> None:
    assert sorted(
        point["train.network_dim"] for point in draw_points(parse_ranges(["train.network_dim=4..6"]), 20, 0)
    ) == [4, 5, 6]


@pytest.mark.parametrize(
    "text", ["train.unet_lr=1e-4", "train.unet_lr=5..1", "train.unet_lr=0..1:log", "train.unet_lr=a..b"]
)
def test_what_is_no_range_is_told(text: str) -> None:
    with pytest.raises(UsageError, match=r"--range train.unet_lr"):
        parse_ranges([text])


LISTS = {
    "runs.csv": "train.network_dim, train.optimizer\n8, AdamW\n,Lion\n",
    "runs.jsonl": '{"train.network_dim": 8, "train.optimizer": "AdamW"}\n\n{"train": {"optimizer": "Lion"}}\n',
    "runs.toml": '[[runs]]\ntrain.network_dim = 8\ntrain.optimizer = "AdamW"\n[[runs]]\ntrain.optimizer = "Lion"\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_csv_json_lines_or_toml(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(LISTS[name])
    assert read_list(tmp_path / name) == [
        {"train.network_dim": 8, "train.optimizer": "AdamW"},
        {"train.optimizer": "Lion"},
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "x"), ("a.csv", "dim\n8\n"), ("a.jsonl", "[1]"), ("a.toml", "x = 1"), ("a.csv", ""), ("a.jsonl", "{")],
)
def test_a_list_that_is_none_is_told_by_its_name(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=name):
        read_list(tmp_path / name)


def test_sources_are_multiplied_and_may_not_set_the_same() -> None:
    grid, seeds = parse_grid(["train.network_dim=8,16"]), [{"train.seed": 1}, {"train.seed": 2}]
    assert len(multiply(grid, [], seeds)) == 4
    with pytest.raises(UsageError, match="more than one"):
        multiply(grid, grid)


@pytest.mark.parametrize("value", [8, 1e-05, 0.0001, True, "AdamW", 'a "b"\\', [1, 2], "ümlaut"])
def test_a_points_setting_is_read_back_as_it_was(value: object) -> None:
    assert parse_setting(as_setting("train.key", value)) == {"train": {"key": value}}


def test_varied_settings_are_those_that_differ() -> None:
    assert varied([{"a.x": 1, "a.y": 2}, {"a.x": 1, "a.y": 3}, {"a.y": 3}]) == ["a.x", "a.y"]
    assert varied([{"a.x": 1, "a.y": 2}, {"a.x": 1, "a.y": 3}]) == ["a.y"]
