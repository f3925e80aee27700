"""Claims about reading sd-scripts' output, on lines that v0.10.1 printed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from brushset.kohya.parse_log import LogReader, Progress, describe_phase
from brushset.kohya.scalars import read_losses

LINES = """\
accelerator device: cpu
loading model for process 0/1
caching latents...
create LoRA for Text Encoder: 72 modules.
create LoRA for U-Net: 192 modules.
running training / 学習開始
  num batches per epoch / 1epochのバッチ数: 2
  num epochs / epoch数: 1
  total optimization steps / 学習ステップ数: 3
steps:   0%|          | 0/3 [00:00<?, ?it/s]
epoch 1/1
steps:  33%|███       | 1/3 [00:17<00:17, 17.99s/it]
steps:  33%|███       | 1/3 [00:17<00:17, 17.99s/it, avr_loss=1.26]
steps:  67%|██████    | 2/3 [00:18<00:01,  1.50it/s, avr_loss=1.26]
steps:  67%|██████    | 2/3 [00:18<00:01,  1.50it/s, avr_loss=1.27]
steps: 100%|██████████| 3/3 [01:00:18<00:00,  1.50it/s, Keys Scaled=0, Average key norm=0.1, avr_loss=0.5]
saving checkpoint: weights/cartoon.safetensors
model saved.
steps: 100%|██████████| 3/3 [01:00:18<00:00,  1.50it/s, avr_loss=0.5]
""".splitlines()


def test_each_step_is_told_once_with_its_own_loss() -> None:
    reader = LogReader()
    told = [progress for line in LINES if (progress := reader.read(line))]
    assert told == [
        Progress(1, 3, 1.26, 1 / 17.99, 17.0),
        Progress(2, 3, 1.27, 1.5, 1.0),
        Progress(3, 3, 0.5, 1.5, 0.0),
    ]


def test_facts_and_the_end_are_found() -> None:
    reader = LogReader()
    for line in LINES:
        reader.read(line)
    assert reader.facts == {
        "device": "cpu", "batches": "2", "epochs": "1", "steps": "3", "unet_modules": "192", "text_modules": "72",
    }  # fmt: skip
    assert reader.saved
    assert not reader.no_data
    assert reader.last_step == 3


def test_nan_is_read_as_nan() -> None:
    reader = LogReader()
    assert reader.read("steps:  10%|█   | 1/10 [00:01<00:09,  1.00it/s]") is None
    first = reader.read("steps:  10%|█   | 1/10 [00:01<00:09,  1.00it/s, avr_loss=nan]")
    assert first is not None
    assert first.loss is not None
    assert math.isnan(first.loss)
    assert reader.read("steps:  20%|██  | 2/10 [00:02<00:08,  1.00it/s, avr_loss=nan]") is None
    second = reader.read("steps:  20%|██  | 2/10 [00:02<00:08,  1.00it/s, avr_loss=nan]")
    assert second is not None
    assert second.step == 2


def test_other_bars_are_not_progress() -> None:
    reader = LogReader()
    for line in (
        "100%|████| 4/4 [00:31<00:00,  8.00s/it]",
        "validation steps:  50%|█ | 1/2 [00:01<00:01,  1.0it/s, val_avg_loss=1]",
    ):
        assert reader.read(line) is None
    assert reader.last_step == 0


def test_no_data_is_noticed() -> None:
    reader = LogReader()
    reader.read("No data found. Please verify arguments (train_data_dir must be …")
    assert reader.no_data
    assert not reader.saved


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        ("loading model for process 0/1", "loading the base model"),
        ("caching latents...", "caching latents"),
        ("x", None),
    ],
)
def test_phases_are_named(line: str, phase: str | None) -> None:
    assert describe_phase(line) == phase


def write_events(folder: Path, losses: list[tuple[int, float]], rates: dict[int, float]) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for step, loss in losses:
            writer.add_scalar("loss/current", loss, step)
        for step, rate in rates.items():
            writer.add_scalar("lr/textencoder", 9.0, step)
            writer.add_scalar("lr/unet", rate, step)
    return next(folder.glob("events.out.tfevents.*"))


def test_losses_and_rates_of_every_step_are_read(tmp_path: Path) -> None:
    count = 10100  # more than TensorBoard keeps by default
    file = write_events(tmp_path, [(step, float(step)) for step in range(1, count + 1)], {1: 0.5, 2: 0.25})
    points = read_losses([file])
    assert [point.step for point in points] == list(range(1, count + 1))
    assert points[-1].loss == count
    assert [point.lr for point in points[:3]] == [0.5, 0.25, None]


def test_batches_of_an_accumulated_step_are_averaged_into_it(tmp_path: Path) -> None:
    logged = [(0, 1.0), (1, 3.0), (1, 10.0), (2, 20.0), (2, 7.0), (3, 9.0)]
    points = read_losses([write_events(tmp_path, logged, {})])
    assert [(point.step, point.loss) for point in points] == [(1, 2.0), (2, 15.0), (3, 8.0)]


def test_no_files_are_no_losses() -> None:
    assert read_losses([]) == ()
