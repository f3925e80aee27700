"""The simulated service: what theory knows of a queue holds in it, and what is lost is done again."""

from __future__ import annotations

import random
import statistics

import pytest

from bench import service
from bench.service import OPTIONS, Assumptions, arrivals, service_s, simulate


def assume(**changes: float) -> Assumptions:
    defaults = {name.replace("-", "_"): default for name, _, default, _ in OPTIONS}
    return Assumptions(**{**defaults, **changes})  # type: ignore[arg-type]


def test_waits_are_those_of_the_queue_with_equal_services() -> None:
    """Pollaczek and Khinchine: with one worker and equal services the mean wait is ρ/(2(1 − ρ)) services."""
    fixed = {"spread": 0.0, "losses": 0.0, "pack": 1, "peak": 1.0}
    whole = sum(service_s([service.Job(0.0, 100, 4000.0)], assume(**fixed)).values())
    many = [simulate(assume(**fixed, styles=0.6 * service.DAY_S / whole), 1, seed) for seed in range(40)]
    mean = statistics.mean(wait for day in many for wait in day.waits)
    assert mean == pytest.approx(whole * 0.6 / (2 * 0.4), rel=0.15)
    assert statistics.mean(day.busy for day in many) == pytest.approx(0.6, rel=0.05)


def test_styles_come_as_many_as_said_and_most_at_the_peak() -> None:
    came = [job.came for job in arrivals(assume(peak=2.0, styles=20_000), random.Random(1)) if job.came >= 0]
    assert len(came) == pytest.approx(20_000, rel=0.03)
    middle = sum(0.4 <= at / service.DAY_S < 0.6 for at in came)
    ends = sum(not 0.1 <= at / service.DAY_S < 0.9 for at in came)
    assert middle > 5 * ends


def test_every_style_is_finished_however_often_workers_die() -> None:
    calm, wild = (simulate(assume(styles=500, losses=losses), 40, 2) for losses in (0.0, 6.0))
    assert wild.lost > 50 > calm.lost == 0
    assert wild.done == pytest.approx(calm.done, abs=3)
    assert wild.phases["lost"] > 0
    assert statistics.mean(wild.totals) > statistics.mean(calm.totals)


def test_packing_saves_where_batches_are_shared_and_nothing_where_none_is() -> None:
    three = [service.Job(0.0, 100, 4000.0) for _ in range(3)]
    alone = 3 * service_s(three[:1], assume())["training"]
    assert service_s(three, assume(shared=0.0))["training"] == pytest.approx(alone)
    assert service_s(three, assume(shared=1.0))["training"] == pytest.approx(alone * 90 / 170)


def test_the_command_tells_a_day_and_keeps_to_the_wait(capsys: pytest.CaptureFixture[str]) -> None:
    found = service.main(["--styles", "300", "--wait", "30"])
    assert found["wait_95_s"] <= 30
    assert found["styles"] == pytest.approx(300, rel=0.2)
    said = capsys.readouterr().out
    assert "evaluation" in said
    assert "GB a day" in said
    fewer = service.main(["--styles", "300", "--gpus", str(int(found["gpus"]) * 2), "--json"])
    assert fewer["busy"] < found["busy"]


def test_impossible_assumptions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        service.main(["--peak", "3"])
    assert "--peak is between 1 and 2" in capsys.readouterr().err
