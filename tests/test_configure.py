"""How long a training will be, and that nothing but the prepared images is in the folder that trainers read."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from brushset.errors import InputError
from brushset.log import silent
from brushset.paths import RunPaths
from brushset.pipeline import Pipeline
from brushset.records import EngineConfig, Prepared
from brushset.spec import BaseSection, CaptionSection, DatasetSection, StyleSpec, TrainSection
from brushset.stages import audit, caption, configure, preprocess
from brushset.stages.configure import choose_repeats

STAGES = (audit.STAGE, preprocess.STAGE, caption.STAGE, configure.STAGE)


@pytest.mark.parametrize(
    ("images", "repeats"),
    [(10, 20), (63, 3), (93, 2), (153, 1), (165, 1), (1000, 1)],
)
def test_automatic_repeats_bring_the_epochs_near_the_target(images: int, repeats: int) -> None:
    """63 is the set of 2000x2000: 63 × 3 ÷ 4 × 20 = 945 steps of the 1000 aimed at."""
    chosen, why = choose_repeats(TrainSection(), images)
    assert chosen == repeats
    assert why.startswith(f"repeats {repeats}: target_steps 1000 × batch 4 ÷ ({images} images × 20 epochs) = ")


def test_explicit_repeats_win_and_max_steps_leave_them_at_one() -> None:
    assert choose_repeats(TrainSection(repeats=7), 63) == (7, "repeats 7: as the style says")
    assert choose_repeats(TrainSection(max_steps=50), 63) == (1, "repeats 1: max_steps = 50 rules the length")
    assert choose_repeats(TrainSection(repeats=7, max_steps=50), 63)[0] == 7


def test_the_batch_is_all_that_one_step_sees() -> None:
    one = choose_repeats(TrainSection(), 63)[0]
    assert choose_repeats(TrainSection(gradient_accumulation_steps=2), 63)[0] == 2 * one
    assert choose_repeats(TrainSection(target_steps=2000), 63)[0] == 2 * one


def test_where_one_repeat_is_too_many_the_epochs_that_would_do_are_told() -> None:
    assert choose_repeats(TrainSection(), 1000)[1].endswith(
        "1 is the least; train.epochs = 4 would come near target_steps"
    )
    assert "train.epochs" not in choose_repeats(TrainSection(), 200)[1]
    assert "train.epochs" not in choose_repeats(TrainSection(epochs=1), 100_000)[1]


def make_pipeline(tmp_path: Path, count: int = 6, emit=silent, **dataset: object) -> Pipeline:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.effect_noise((128, 128), 20 + 10 * index).convert("RGB").save(folder / f"{index}.png")
    spec = StyleSpec(
        name="mine", trigger="mystyle", base=BaseSection(model="random:tiny"),
        dataset=DatasetSection(images=str(folder), resolution=128, min_images=2, **dataset),
        caption=CaptionSection(captioner="trigger-only"),
        train=TrainSection(engine="native", min_bucket_reso=64, max_bucket_reso=256),
    )  # fmt: skip
    return Pipeline(spec, RunPaths(tmp_path / "runs" / "mine" / "one"), emit)


def test_the_arithmetic_is_said_and_kept(tmp_path: Path) -> None:
    said = []
    run = make_pipeline(
        tmp_path, emit=lambda event, /, **fields: said.append(fields["text"]) if event == "note" else None
    )
    run.execute(STAGES)
    record = EngineConfig.model_validate(run.done["configure"].data)
    assert record.arithmetic in said
    assert (record.repeats, record.batches_per_epoch, record.steps) == (33, 50, 1000)
    assert "repeats 33: target_steps 1000" in record.arithmetic
    assert "num_repeats = 33" in run.run.dataset_toml.read_text()


def test_held_out_images_do_not_count_and_are_not_in_the_pair(tmp_path: Path) -> None:
    run = make_pipeline(tmp_path, 12, holdout=0.25, holdout_from=10)
    run.execute(STAGES)
    prepared = Prepared.model_validate(run.done["preprocess"].data)
    record = EngineConfig.model_validate(run.done["configure"].data)
    assert (record.images, len(prepared.heldout)) == (9, 3)
    assert sum(record.buckets.values()) == 9
    assert "heldout" not in run.run.dataset_toml.read_text()


def test_an_image_that_nobody_prepared_is_refused_by_name(tmp_path: Path) -> None:
    run = make_pipeline(tmp_path, 12, holdout=0.25, holdout_from=10)
    run.execute(STAGES[:3])
    held = Prepared.model_validate(run.done["preprocess"].data).heldout[0]
    (run.run.images / "copy.png").write_bytes((run.run.images / held.name).read_bytes())
    with pytest.raises(InputError, match=r"copy\.png: not one of the 9 prepared images, and would be trained on"):
        run.execute(STAGES)
    (run.run.images / "copy.png").unlink()
    assert run.execute(STAGES) == 1
