"""How Ray is started and asked; Ray itself is a stand-in. With a real cluster: tests/test_executors_contract.py."""

from __future__ import annotations

import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from brushset.errors import EnvironmentProblem, UsageError
from brushset.executors.ray import Death, RayExecutor
from brushset.files import read_toml
from brushset.paths import PROJECT, RunPaths
from brushset.protocols import Task
from brushset.spec import RaySection


class FakeRay(types.ModuleType):
    """Takes what it is told down; its start fails as often as asked."""

    def __init__(self, failures: int = 0, gpus: float = 0.0) -> None:
        super().__init__("ray")
        self.failures, self.gpus = failures, gpus
        self.inits: list[dict[str, Any]] = []
        self.shutdowns = 0
        self.options: dict[str, Any] = {}

    def init(self, **how: Any) -> None:
        self.inits.append(how)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as Ray does
        if len(self.inits) <= self.failures:
            raise RuntimeError("a trace\nThe current node timed out during startup")

    def shutdown(self) -> None:
        self.shutdowns += 1

    def cluster_resources(self) -> dict[str, float]:
        return {"GPU": self.gpus} if self.gpus else {}

    def remote(self, function: Any) -> Any:
        return types.SimpleNamespace(options=lambda **options: self.options.update(options))

    def wait(self, refs: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return refs, []


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)


def started(monkeypatch: pytest.MonkeyPatch, ray: FakeRay, settings: RaySection, at_once: int = 1) -> RayExecutor:
    monkeypatch.setitem(sys.modules, "ray", ray)
    return RayExecutor(settings, 2, at_once=at_once)


def test_a_cluster_of_our_own_is_small_silent_and_on_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    executor = started(monkeypatch, ray, RaySection(), at_once=3)
    (how,) = ray.inits
    assert how["include_dashboard"] is False
    assert how["_node_ip_address"] == "127.0.0.1"
    assert how["num_cpus"] == 3
    assert len(how["_temp_dir"]) < 40
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert "RAY_AUTH_MODE" not in os.environ  # tokens stay on
    assert Path(how["_temp_dir"]).is_dir()
    executor.close()
    assert not Path(how["_temp_dir"]).exists()


def test_plain_ray_is_enough() -> None:
    """Ray's dashboard agent comes with ray[default]; with it a start took twice as long, and failed now and then."""
    extras = read_toml(PROJECT / "pyproject.toml")["project"]["optional-dependencies"]
    assert [each.partition(">")[0] for each in extras["ray"]] == ["ray"]


def test_a_start_that_fails_is_tried_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(failures=2)
    started(monkeypatch, ray, RaySection()).close()
    assert len(ray.inits) == 3
    with pytest.raises(EnvironmentProblem, match="3 times: The current node timed out during startup"):
        started(monkeypatch, FakeRay(failures=3), RaySection())


def test_a_users_own_cluster_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay(gpus=8.0)
    started(monkeypatch, ray, RaySection(address="10.0.0.1:6379")).close()
    assert ray.inits == [{"address": "10.0.0.1:6379", "log_to_driver": False, "configure_logging": False}]


@pytest.mark.parametrize(
    ("gpus", "at_once", "settings", "wanted"),
    [
        (0.0, 2, RaySection(), 0.0),
        (4.0, 4, RaySection(), 1.0),
        (1.0, 4, RaySection(), 0.25),
        (8.0, 1, RaySection(address="auto"), 1.0),
        (1.0, 1, RaySection(gpus_per_run=0.5), 0.5),
    ],
)
def test_a_run_gets_a_gpu_or_what_parallel_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, gpus: float, at_once: int, settings: RaySection, wanted: float
) -> None:
    ray = FakeRay(gpus=gpus)
    started(monkeypatch, ray, settings, at_once).close()
    assert ray.options["num_gpus"] == wanted
    assert ray.options["max_retries"] == 2
    assert ray.options["retry_exceptions"] == [Death]


def test_our_own_handler_of_sigterm_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, mine := lambda *_: None)
    try:
        started(monkeypatch, FakeRay(), RaySection()).close()
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="uv sync --extra ray"):
        RayExecutor(RaySection(), 2, at_once=1)


def test_a_task_that_was_cancelled_while_it_waited_starts_nothing(tmp_path: Path) -> None:
    from brushset.executors.ray import work
    from brushset.workers import note_cancelled, read_workers

    run = RunPaths(tmp_path)
    note_cancelled(run)
    work(str(tmp_path), Task(run, ("false",), ()).argv, "s", 2)
    assert not read_workers(run).starts
