"""Which styles share a pass: few passes, each style's own order, and none left behind."""

from __future__ import annotations

import functools
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from brushset.buckets import BucketRules, Size, plan_buckets
from brushset.native.dataset import TrainingImage, TrainingSet, epoch_batches
from brushset.native.schedule import Schedule, evenly_apart
from brushset.native.settings import DatasetKeys

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
Shape = tuple[Size, int]
# What the real sets of ../shared/data come to at 512 px, so that the counts below hold without them.
COUNTS: Mapping[str, Mapping[Size, int]] = {
    "anime_mikabul": {(320, 704): 1, (384, 640): 39, (448, 576): 16, (512, 512): 35, (640, 384): 2},
    "watercolor_potter": {(448, 576): 109, (512, 512): 41, (576, 448): 15},
    "cartoon_gophers": {(512, 512): 148},
    "painted_mikabul_control": {(384, 640): 24, (448, 576): 9, (512, 512): 13, (576, 448): 3},
}
DEFAULT = ("anime_mikabul", "watercolor_potter", "cartoon_gophers")


def shapes_of(counts: Mapping[Size, int], *, seed: int, epochs: int = 20, batch_size: int = 4) -> list[Shape]:
    """Bucket and size of every batch of a training on so many images a bucket, in the order it draws them."""
    names = {
        f"{width}x{height} {n}.png": (width, height) for (width, height), most in counts.items() for n in range(most)
    }
    rules = BucketRules(resolution=512, min_reso=256, max_reso=1024, step=64, no_upscale=False, enable=True)
    plan = plan_buckets(names, rules)
    assert plan.counts == counts
    images = TrainingSet(tuple(TrainingImage(Path(name), "x", size) for name, size in names.items()), plan)
    keys = DatasetKeys(image_dir="x", resolution=512, batch_size=batch_size)
    return [(batch.bucket, len(batch.images)) for epoch in range(1, epochs + 1)
            for batch in epoch_batches(images, keys, seed=seed, epoch=epoch)]  # fmt: skip


@functools.cache
def real(*names: str) -> tuple[dict[int, list[Shape]], Schedule]:
    """Their shapes by row, and who goes with whom."""
    shapes = {row: shapes_of(COUNTS[name], seed=row + 1) for row, name in enumerate(names)}
    return shapes, Schedule(shapes)


def run(shapes: Mapping[int, Sequence[object]], schedule: Schedule) -> list[tuple[int, ...]]:
    """The rows of each pass, to the end of all; each pass is checked."""
    done, passes = dict.fromkeys(shapes, 0), []
    while living := {row: at for row, at in done.items() if at < len(shapes[row])}:
        chosen = schedule.choose(living)
        assert len({shapes[row][done[row]] for row in chosen}) == 1
        assert chosen == evenly_apart(chosen)
        for row in chosen:
            done[row] += 1
        passes.append(tuple(chosen))
    assert Counter(row for each in passes for row in each) == {row: len(own) for row, own in shapes.items()}
    return passes


def fewest(first: Sequence[object], second: Sequence[object]) -> int:
    """Of two styles: the length of their shortest common supersequence."""
    above = list(range(len(second) + 1))
    for n, shape in enumerate(first, 1):
        row = [n]
        for m, other in enumerate(second, 1):
            row.append(above[m - 1] + 1 if shape == other else 1 + min(above[m], row[-1]))
        above = row
    return above[-1]


def at_least(shapes: Mapping[int, Sequence[object]]) -> int:
    """What no order of these batches can do without: of every shape the passes of the style that has most of it."""
    counts = [Counter(own) for own in shapes.values()]
    return sum(max(each[shape] for each in counts) for shape in set().union(*counts))


def largest_group_first(shapes: Mapping[int, Sequence[object]]) -> int:
    """Passes where nobody looks ahead."""
    done, passes = dict.fromkeys(shapes, 0), 0
    while living := [row for row, at in done.items() if at < len(shapes[row])]:
        groups: dict[object, list[int]] = {}
        for row in living:
            groups.setdefault(shapes[row][done[row]], []).append(row)
        for row in max(groups.values(), key=lambda group: (len(group), sum(len(shapes[r]) - done[r] for r in group))):
            done[row] += 1
        passes += 1
    return passes


def test_the_real_sets_share_nearly_all_that_can_be_shared() -> None:
    shapes, schedule = real(*DEFAULT)
    found = len(run(shapes, schedule))
    steps = sum(map(len, shapes.values()))
    print(f"{steps} separate steps: {found} passes, {at_least(shapes)} at least, "
          f"{largest_group_first(shapes)} without looking ahead")  # fmt: skip
    assert steps == 2100
    assert found <= 1.005 * at_least(shapes)


@pytest.mark.parametrize(
    "names", [DEFAULT[:2], (DEFAULT[0], "painted_mikabul_control"), (*DEFAULT[:2], "painted_mikabul_control")]
)
def test_looking_ahead_saves_passes_where_several_shapes_are_shared(names: tuple[str, ...]) -> None:
    shapes, schedule = real(*names)
    found, without = len(run(shapes, schedule)), largest_group_first(shapes)
    best = fewest(*shapes.values()) if len(shapes) == 2 else at_least(shapes)
    print(f"{names}: {found} passes, {without} without looking ahead, {best} at least")
    assert found < 0.93 * without
    assert found <= best * (1.01 if len(shapes) == 2 else 1.06)


@pytest.mark.parametrize("names", [DEFAULT, (*DEFAULT[:2], "painted_mikabul_control"), tuple(COUNTS)])
def test_styles_progress_alike_whatever_their_shapes(names: tuple[str, ...]) -> None:
    apart(*real(*names))


def test_a_style_whose_shapes_match_nobodys_is_not_left_to_the_end() -> None:
    shapes: dict[int, list[str]] = {0: ["wide"] * 200, 1: ["wide"] * 150, 2: ["tall"] * 60}
    schedule = Schedule(shapes)
    apart(shapes, schedule)
    passes = run(shapes, schedule)
    assert len(passes) == 260
    places = [number for number, rows in enumerate(passes) if rows == (2,)]
    assert max(later - former for former, later in itertools.pairwise(places)) < 0.15 * len(passes)
    assert places[0] < 0.1 * len(passes)


def apart(shapes: Mapping[int, Sequence[object]], schedule: Schedule) -> None:
    """Checks how far apart shares of unfinished styles come: a twentieth, or four batches, and the one that is made."""
    done, worst = dict.fromkeys(shapes, 0), 0.0
    for _ in range(sum(map(len, shapes.values()))):
        living = {row: at for row, at in done.items() if at < len(shapes[row])}
        if not living:
            break
        shares = {row: at / len(shapes[row]) for row, at in living.items()}
        for row, share in shares.items():
            ahead = share - min(shares.values())
            assert ahead <= max(0.05, 4 / len(shapes[row])) + 1 / len(shapes[row]) + 1e-9
            worst = max(worst, ahead)
        for row in schedule.choose(living):
            done[row] += 1
    assert all(at == len(shapes[row]) for row, at in done.items())
    print(f"largest difference of shares {worst:.3f}")


@pytest.mark.parametrize("seed", range(5))
def test_a_style_that_ends_early_leaves_the_others_on_their_way_and_its_passes_out(seed: int) -> None:
    rng = random.Random(seed)
    shapes = {row: rng.choices("abc", k=rng.randint(40, 90)) for row in range(3)}
    schedule = Schedule(shapes)
    whole = run(shapes, schedule)
    stop = rng.randrange(5, 25)
    done = dict.fromkeys(shapes, 0)
    for rows in whole[:stop]:
        for row in rows:
            done[row] += 1
    rest = []
    del done[1]
    while living := {row: at for row, at in done.items() if at < len(shapes[row])}:
        rest.append(tuple(schedule.choose(living)))
        for row in rest[-1]:
            done[row] += 1
    expected = [tuple(row for row in rows if row != 1) for rows in whole[stop:]]
    assert rest == [rows for rows in expected if rows]


def test_who_goes_next_depends_on_where_each_is_alone() -> None:
    shapes = {row: random.Random(row).choices("abc", k=150) for row in range(3)}
    schedule = Schedule(shapes)
    passes = run(shapes, schedule)
    done = dict.fromkeys(shapes, 0)
    for rows in passes[:70]:
        for row in rows:
            done[row] += 1
    another = Schedule(shapes)
    assert another.choose(done) == list(passes[70])
    assert another.count(done) == len(passes) - 70
    assert another.count(dict.fromkeys(shapes, 0)) == len(passes)
    done[0] -= 5  # off the plan: a state of another pack
    assert schedule.choose(done) == another.choose(done) == Schedule(shapes).choose(done)
    assert len(passes) - 70 < another.count(done) < len(passes)


def test_only_rows_that_lie_evenly_apart_go_together() -> None:
    assert evenly_apart([0, 1, 3]) == [0, 1]
    assert evenly_apart([0, 2, 4]) == [0, 2, 4]
    assert evenly_apart([3]) == [3]
    assert Schedule({row: ["a"] for row in (0, 1, 3)}).choose({0: 0, 1: 0, 3: 0}) == [0, 1]
    shapes = {row: ["a"] * 9 for row in (0, 1, 3)}
    assert len(run(shapes, Schedule(shapes))) == 18


def test_a_long_training_is_planned_in_sections() -> None:
    shapes = {row: random.Random(row).choices("abcd", k=800) for row in range(2)}
    found = len(run(shapes, Schedule(shapes)))
    assert found > 1000
    assert found <= 1.05 * fewest(*shapes.values())


@pytest.mark.parametrize("name", COUNTS)
def test_the_counts_are_those_of_the_real_sets(name: str) -> None:
    if not DATA.is_dir():
        pytest.skip(f"the real sets are not at {DATA}")
    from PIL import Image

    sizes = {}
    for path in sorted((DATA / name).iterdir()):
        if path.suffix in {".png", ".jpg"}:
            with Image.open(path) as image:
                sizes[path.name] = image.size
    rules = BucketRules(resolution=512, min_reso=256, max_reso=1024, step=64, no_upscale=False, enable=True)
    assert plan_buckets(sizes, rules).counts == COUNTS[name]
