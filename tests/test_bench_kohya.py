"""The bench of the kohya engine: real launches on the narrow model, and what it makes of their times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import kohya
from bench.launches import CHANGES, SPEED_KEYS, Launched, Work, lay_out
from brushset.files import read_toml
from brushset.kohya.check.flags import check_pair
from brushset.kohya.render import flatten
from brushset.kohya.source import Source
from brushset.paths import PROJECT
from brushset.records import BaseFile


@pytest.fixture
def work(tiny_base: BaseFile) -> Work:
    source = Source(Path("/sd"), "unknown")
    return Work(tiny_base, source, source.script, images=2, epochs=2, resolution=128, precision="no")


def test_variants_differ_in_speed_alone(tmp_path: Path, work: Work) -> None:
    pairs = {}
    for variant in kohya.VARIANTS:
        run = lay_out(tmp_path / variant, work, variant, 2)
        dataset, training = read_toml(run.dataset_toml), read_toml(run.training_toml)
        check_pair(dataset, training)
        assert len(list(run.images.glob("*.png"))) == len(list(run.images.glob("*.txt"))) == 2
        pairs[variant] = (dataset, flatten(training))
    stock = pairs["stock"][1]
    assert not set(SPEED_KEYS) & set(stock)
    speed = {*SPEED_KEYS, "persistent_data_loader_workers", "logging_dir", "log_with", "console_log_simple"}
    for variant, (dataset, training) in pairs.items():
        assert dataset == pairs["stock"][0], variant
        differing = {key for key in stock.keys() | training.keys() if stock.get(key) != training.get(key)}
        assert differing <= speed, variant
        assert differing or variant == "stock"
    assert set(CHANGES["cached latents"]) <= set(pairs["tuned"][1])
    assert pairs["tuned"][1]["optimizer_args"] == ["fused=True"]


def test_rates_and_gaps_are_read_from_the_ends_of_steps() -> None:
    one = Launched(samples=8, steps=4, step_ends=[10.0, 11.0, 15.0, 16.0])
    two = Launched(samples=8, steps=4, step_ends=[11.0, 12.0, 13.0, 14.0])
    assert kohya._rate([one], batch=2) == pytest.approx(6 / 6)
    assert kohya._rate([one, two], batch=2) == pytest.approx(12 / 6)
    assert kohya._gaps(one, epochs=2) == [3.0]
    assert kohya._gaps(two, epochs=2) == [0.0]
    assert kohya._rate([Launched(2, 1, step_ends=[3.0])], batch=2) == 0.0


def test_a_launch_that_fails_is_a_row_with_the_reason(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies.py").write_text("raise SystemExit('no such luck')")
    monkeypatch.setattr("bench.launches.build_command", lambda launch: [sys.executable, str(launch.script)])
    failing = Work(work.base, work.source, tmp_path / "dies.py", 2, 2, 128, "no")
    row = kohya.measure(failing, "tuned", 2, 2, dict(os.environ))
    assert "no such luck" in row.error
    assert row.samples == 0


def test_several_at_once_add_up(tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "steps.py").write_text(
        "import time\nprint('epoch 1/2', flush=True)\n"
        "for step in (1, 2):\n    time.sleep(0.2)\n"
        "    print(f'steps:  50%|#| {step}/2 [00:01<00:01, 1.00it/s, avr_loss=0.{step}]', flush=True)"
    )
    monkeypatch.setattr("bench.launches.build_command", lambda launch: [sys.executable, str(launch.script)])
    row = kohya.measure(
        Work(work.base, work.source, tmp_path / "steps.py", 2, 2, 128, "no"), "tuned", 2, 3, dict(os.environ)
    )
    assert (row.error, row.samples, row.at_once) == ("", 12, 3)
    assert row.samples_per_s > 0


@pytest.mark.vendor
@pytest.mark.slow
def test_one_command_prints_a_table_and_writes_a_line_a_stage(
    tmp_path: Path, sd_scripts: Source, tiny_base: BaseFile
) -> None:
    out = tmp_path / "rows.jsonl"
    argv = [sys.executable, str(PROJECT / "bench/kohya.py"), "--size", "tiny", "--images", "2", "--epochs", "2"]
    done = subprocess.run(
        [*argv, "--batch", "1", "--styles", "2", "--variants", "tuned", "--out", str(out)],
        env={**os.environ, "SD_SCRIPTS_DIR": str(sd_scripts.folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["variant"], row["batch"], row["at_once"], row["samples"]) for row in rows] == [
        ("tuned", 1, 1, 4),
        ("tuned", 1, 2, 8),
    ]
    for row in rows:
        assert row["samples_per_s"] > 0
        assert 0 < row["startup_s"] < row["wall_s"]
        assert row["main_gb"] > 0.3
    for word in ("samples", "start-up s", "gap s", "main GB"):
        assert word in done.stdout
