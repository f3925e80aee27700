"""Buckets: sd-scripts' rules, held against its real code where that is at hand."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from brushset.buckets import BucketPlan, BucketRules, Size, batches_per_epoch, list_buckets, plan_buckets, settle
from brushset.errors import EnvironmentProblem, InputError, UsageError
from brushset.kohya.source import find_source

RULES = {"resolution": 512, "min_reso": 256, "max_reso": 1024, "step": 64, "no_upscale": False, "enable": True}

# Runs in a child process: vendor code never enters ours.
REFERENCE = """
import json, sys
from library.train_util import BucketManager
out = []
for rules, sizes in json.load(sys.stdin):
    side = rules["resolution"]
    if rules["enable"]:
        manager = BucketManager(rules["no_upscale"], (side, side), rules["min_reso"], rules["max_reso"], rules["step"])
        if not rules["no_upscale"]:
            manager.make_buckets()
    else:
        manager = BucketManager(False, (side, side), None, None, None)
        manager.set_predefined_resos([(side, side)])
    out.append([])
    for w, h in sizes:
        try:
            out[-1].append(manager.select_bucket(w, h))
        except ZeroDivisionError:
            out[-1].append(None)
print("RESULT" + json.dumps(out, default=float))
"""


def plan(sizes: list[Size], **changes: object) -> BucketPlan:
    return plan_buckets({str(i): size for i, size in enumerate(sizes)}, BucketRules(**{**RULES, **changes}))


def test_a_square_image_goes_to_the_square_bucket_uncut() -> None:
    place = plan([(2000, 2000)]).placements["0"]
    assert (place.bucket, place.resized, place.crop) == ((512, 512), (512, 512), (0, 0))


def test_a_wide_image_covers_its_bucket_and_is_cut_at_the_centre() -> None:
    place = plan([(1000, 600)]).placements["0"]
    assert place.bucket == (640, 384)
    assert place.resized == (640, 384)
    place = plan([(1000, 500)]).placements["0"]
    assert place.bucket == (704, 320)
    assert place.resized == (704, 352)
    assert place.crop == (0, 16)


def test_no_bucket_is_larger_than_the_resolutions_area() -> None:
    buckets = list_buckets(512, min_reso=256, max_reso=1024, step=64)
    assert (512, 512) in buckets
    assert all(width * height <= 512 * 512 and width % 64 == height % 64 == 0 for width, height in buckets)


def test_without_upscaling_a_small_image_keeps_its_size() -> None:
    place = plan([(300, 200)], no_upscale=True).placements["0"]
    assert (place.bucket, place.resized, place.crop) == ((256, 192), (300, 200), (22, 4))


def test_without_upscaling_a_side_below_a_step_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"0: 40x300 px has a side below 64"):
        plan([(40, 300), (512, 512)], no_upscale=True)


def test_disabled_buckets_put_everything_into_one_square() -> None:
    assert plan([(512, 512), (1000, 300)], enable=False).counts == {(512, 512): 2}


def test_a_resolution_outside_the_buckets_sides_is_refused() -> None:
    with pytest.raises(UsageError, match="resolution 128"):
        plan([(512, 512)], resolution=128)


def test_each_buckets_short_batch_counts() -> None:
    made = plan([(512, 512)] * 5 + [(1000, 500)] * 2)
    assert made.counts == {(512, 512): 5, (704, 320): 2}
    assert batches_per_epoch(made, repeats=1, batch_size=4) == 3
    assert batches_per_epoch(made, repeats=3, batch_size=4) == 4 + 2


def test_the_mean_aspect_error_is_that_of_the_buckets_not_of_the_cut() -> None:
    assert plan([(1000, 500)]).mean_aspect_error == pytest.approx(704 / 320 - 2)
    assert plan([]).mean_aspect_error == 0.0


SIDES = st.integers(32, 5000)


@st.composite
def legal_rules(draw: st.DrawFn) -> BucketRules:
    step = draw(st.sampled_from((64, 128)))
    resolution = draw(st.integers(16, 130)) * 8
    least = draw(st.integers(1, resolution // step)) * step if resolution >= step else step
    most = draw(st.integers(-(-resolution // step), 40)) * step
    return BucketRules(
        max(resolution, step), least, most, step, no_upscale=draw(st.booleans()), enable=draw(st.booleans())
    )


def placed(size: Size, rules: BucketRules) -> tuple[Size, Size] | None:
    try:
        place = plan_buckets({"x": size}, rules).placements["x"]
    except InputError:
        return None
    return place.bucket, place.resized


DEFAULT = BucketRules(**RULES)
SHRINKING = BucketRules(**{**RULES, "no_upscale": True})


@given(size=st.tuples(SIDES, SIDES), rules=legal_rules())
@example(size=(193, 217), rules=DEFAULT)  # scaled, it is as near to another bucket
@example(size=(175, 76), rules=DEFAULT)
@example(size=(1649, 2085), rules=SHRINKING)  # scaled, its area is still a row too large
@example(size=(8376, 3278), rules=BucketRules(920, 64, 2048, 64, no_upscale=True, enable=True))
def test_a_settled_size_is_neither_scaled_again_nor_moved_to_another_bucket(size: Size, rules: BucketRules) -> None:
    planned = placed(size, rules)
    assume(planned is not None)
    place = settle(size, rules)
    assert placed(place.resized, rules) == (place.bucket, place.resized)
    assert settle(place.resized, rules) == place
    assert all(inner <= outer for inner, outer in zip(place.bucket, place.resized, strict=True))


@given(size=st.tuples(SIDES, SIDES), rules=legal_rules())
@example(size=(193, 217), rules=DEFAULT)
@example(size=(1649, 2085), rules=SHRINKING)
def test_a_settled_size_is_the_trainers_own_but_for_two_pixels(size: Size, rules: BucketRules) -> None:
    planned = placed(size, rules)
    assume(planned is not None)
    bucket, resized = planned
    assume(bucket[0] * bucket[1] <= rules.resolution**2)  # else: the test below
    place = settle(size, rules)
    assert place.bucket == bucket
    assert 0 <= resized[0] - place.resized[0] + resized[1] - place.resized[1] <= 2


def test_a_bucket_that_rounding_made_too_large_gives_way_to_the_next() -> None:
    """At 920, which is no multiple of 64, sd-scripts' own 1472x576 exceeds the area that it allows."""
    rules = BucketRules(920, 64, 2048, 64, no_upscale=True, enable=True)
    assert placed((8376, 3278), rules) == ((1472, 576), (1472, 576))
    assert settle((8376, 3278), rules).bucket == (1280, 512)


def test_what_fits_into_no_bucket_does_not_settle() -> None:
    with pytest.raises(InputError, match="below 64"):
        settle((40, 300), SHRINKING)


@pytest.mark.vendor
@pytest.mark.slow
def test_every_image_gets_the_bucket_that_sd_scripts_gives_it() -> None:
    try:
        source = find_source(fetch=False)
    except EnvironmentProblem as error:
        pytest.skip(str(error))
    rng = random.Random(1)
    sizes = [(rng.randint(64, 3000), rng.randint(64, 3000)) for _ in range(300)] + [(512, 512), (64, 64), (640, 384)]
    cases = [
        ({**RULES, **changes}, sizes)
        for changes in (
            {},
            {"resolution": 768},
            {"resolution": 128, "min_reso": 64, "max_reso": 256},
            {"no_upscale": True},
            {"no_upscale": True, "resolution": 300},
            {"enable": False},
        )
    ]
    child = subprocess.run(
        [sys.executable, "-c", REFERENCE],
        input=json.dumps(cases),
        cwd=source.folder,
        env={**os.environ, "PYTHONPATH": str(source.folder), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    answers = json.loads(child.stdout.split("RESULT")[1])
    assert len(answers) == len(cases) == 6
    for (rules, _), answer in zip(cases, answers, strict=True):
        assert sum(each is None for each in answer) < len(sizes) // 4  # sd-scripts divides by zero at these
        for size, theirs in zip(sizes, answer, strict=True):
            if theirs is None:
                with pytest.raises(InputError, match="too narrow"):
                    plan_buckets({"x": size}, BucketRules(**rules))
                continue
            ours = plan_buckets({"x": size}, BucketRules(**rules)).placements["x"]
            assert theirs == [list(ours.bucket), list(ours.resized), pytest.approx(ours.aspect_error)], (rules, size)
