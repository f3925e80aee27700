"""The stage `choose` in a world where the truth is known: who is chosen, what is made, what is kept, what is said."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import painted_world as world
import pytest
from PIL import Image

from brushset.chosen import chosen_adapter, load_choice
from brushset.cli import rework
from brushset.errors import VerificationFailed
from brushset.generator import ImageJob, Sampling
from brushset.partners import find_partners
from brushset.records import Choice, Trained, ValidationPoint
from brushset.stage_records import StageRecord
from eval.aside import Aside
from eval.choose.budget import Budget
from eval.choose.stage import STAGE
from eval.kept_images import KEPT, KeepsBase, KeptImages

COUNTER = itertools.count()


@pytest.fixture(autouse=True)
def painted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The painted world in the place of models; an own cache of base images."""
    monkeypatch.setattr("eval.choose.stage.MultiLoRAGenerator", world.Painter)
    monkeypatch.setattr("eval.base_model.resolve_base", lambda *_: world.BASE)
    monkeypatch.setattr("eval.look.load_extractors", lambda *_: world.extractors())
    monkeypatch.setenv("BRUSHSET_CACHE", str(tmp_path / "cache"))
    world.Painter.asked.clear()
    world.Painter.most = 0
    yield
    world.Painter.spoil = staticmethod(lambda _, image: image)


def run_choose(tmp_path: Path, settings: dict[str, Any] | None = None, **changes: Any) -> tuple[Choice, Any, list[str]]:
    made = changes.pop("made", None) or world.make_run(tmp_path / str(next(COUNTER)))
    context, told = world.make_context(made, settings, **changes)
    choice = STAGE.run(context)
    return choice, context, told


def test_the_chosen_one_is_neither_the_first_nor_the_overtrained_last(tmp_path: Path):
    choice, context, told = run_choose(tmp_path)
    assert (choice.decided_by, choice.feasible, choice.meaningful) == ("retention", True, True)
    assert choice.encoder == "painted csd"
    assert choice.measured_by == {
        "retention": "painted csd", "fidelity": "painted clip", "diversity": "painted lpips",
        "memorisation": "painted dinov2",
    }  # fmt: skip
    kept = [
        (each.epoch, each.weight)
        for each in choice.candidates
        if world.copied_of(each.epoch, each.weight) == 0 and each.retention.value is not None
    ]
    best = max(kept, key=lambda each: world.style_of(*each))
    assert world.style_of(choice.epoch, choice.weight) == pytest.approx(world.style_of(*best), abs=0.03)
    assert choice.epoch not in (2, 12)
    assert choice.weights == f"weights/inky-{choice.epoch:06d}.safetensors"
    assert choice.weights_sha256 == f"sha of {choice.epoch}"
    last = next(each for each in choice.candidates if (each.epoch, each.weight) == (12, 1.0))
    assert "memorisation" in last.breaks
    assert (last.memorisation.low or 0) > 0
    assert choice.reason in told[-1]
    assert json.loads((context.workdir / "choice.json").read_text()) == choice.model_dump(mode="json")


def test_it_is_reported_on_prompts_that_it_was_not_chosen_by_beside_the_words(tmp_path: Path):
    choice, _, _ = run_choose(tmp_path)
    assert choice.reported and choice.words  # noqa: PT018 - for the types
    assert set(choice.chosen_on).isdisjoint(choice.reported_on)
    assert len(choice.chosen_on) == len(choice.reported_on) == 8
    assert choice.reported.images == choice.words.images == 16
    assert choice.reported.retention.value == pytest.approx(world.style_of(choice.epoch, choice.weight), abs=0.15)
    assert choice.words.retention.value == pytest.approx(0.25, abs=0.2)
    assert "on prompts that it was not chosen by, the base with style words" in choice.reason
    before = [job for job in world.Painter.asked if job.mix and job.prompt.rpartition(", ")[2] in choice.reported_on]
    assert {job.mix[0][0] for job in before} == {f"inky@{choice.epoch}"}


def test_nothing_is_made_twice_and_the_plan_keeps_its_word(tmp_path: Path):
    choice, _, told = run_choose(tmp_path)
    asked = [(job.prompt, job.seed, job.mix) for job in world.Painter.asked]
    assert len(asked) == len(set(asked)) == choice.images
    planned = int(next(line for line in told if "at most" in line).partition("at most ")[2].split()[0])
    assert choice.images <= planned


def test_the_same_inputs_give_the_same_choice(tmp_path: Path):
    first, _, _ = run_choose(tmp_path)
    second, _, _ = run_choose(tmp_path)
    spent = {"seconds", "images"}
    assert first.model_dump(exclude=spent) == second.model_dump(exclude=spent)


def test_images_by_the_base_are_kept_from_one_run_to_the_next(tmp_path: Path):
    run_choose(tmp_path)
    bare = [job for job in world.Painter.asked if not job.mix]
    world.Painter.asked.clear()
    run_choose(tmp_path)
    assert bare
    assert not [job for job in world.Painter.asked if not job.mix]


def test_some_images_of_every_candidate_are_kept_and_the_rest_is_gone(tmp_path: Path):
    choice, context, _ = run_choose(tmp_path)
    folder = context.workdir
    shown = [*choice.candidates, choice.words, choice.reported]
    for candidate in shown:
        assert candidate
        assert len(candidate.samples) == 4
        assert all((folder / path.removeprefix("choice/")).is_file() for path in candidate.samples)
    assert len(choice.base_samples) == 4
    assert choice.shown_prompts == choice.chosen_on[:4]
    assert (
        choice.candidates[0].samples[1] == f"choice/images/2_0.6/{world.SUBJECTS.index(choice.shown_prompts[1])}_1.jpg"
    )
    assert not (folder / ".scratch").exists()
    assert {path.name for path in folder.iterdir()} == {"images", "grid.png", "choice.json"}
    with Image.open(folder / "grid.png") as sheet:
        assert sheet.width > 4 * world.PX
        assert sheet.height > 6 * world.PX


def test_a_candidate_whose_images_are_broken_is_left_out_with_the_reason(tmp_path: Path):
    def spoil(job: ImageJob, image: Image.Image) -> Image.Image:
        if job.mix and job.mix[0] == ("inky@8", 1.0):
            raise VerificationFailed("an image came out as NaN\nand more")
        return Image.new("RGB", image.size) if job.mix and job.mix[0] == ("inky@8", 0.8) else image

    world.Painter.spoil = staticmethod(spoil)
    made = world.make_run(tmp_path / "broken")
    (made[0].weights / "inky-000010.safetensors").write_bytes(b"broken")
    choice, _, told = run_choose(tmp_path, made=made)
    by_way = {(each.epoch, each.weight): each for each in choice.candidates}
    assert by_way[8, 1.0].reasons[0] == "an image came out as NaN"
    assert "of one single colour" in by_way[8, 0.8].reasons[0]
    assert "not finite" in by_way[10, 0.6].reasons[0]
    assert all(by_way[key].feasible is False for key in ((8, 1.0), (8, 0.8), (10, 0.6)))
    assert by_way[8, 0.6].retention.value is not None
    assert (choice.decided_by, choice.epoch) != ("retention", 10)
    assert any(line.startswith("warning: epoch 8 at 1: left out: an image came out as NaN") for line in told)


def test_a_base_that_draws_nothing_is_an_error(tmp_path: Path):
    def spoil(job: ImageJob, image: Image.Image) -> Image.Image:
        if not job.mix:
            raise VerificationFailed("an image came out as NaN")
        return image

    world.Painter.spoil = staticmethod(spoil)
    with pytest.raises(VerificationFailed):
        run_choose(tmp_path)


def test_many_checkpoints_are_thinned_and_neighbours_of_the_best_come_in(tmp_path: Path):
    made = world.make_run(tmp_path / "many", epochs=24, every=1)
    choice, _, _ = run_choose(tmp_path, {"choose_checkpoints": 6}, made=made)
    tried = {each.epoch for each in choice.candidates}
    assert {4, 8, 12, 16, 20, 24} <= tried
    assert tried - {4, 8, 12, 16, 20, 24}
    assert len(tried) <= 10
    assert world.copied_of(choice.epoch, choice.weight) < 0.1
    assert world.Painter.most <= 12


def test_where_nobody_is_within_the_bounds_it_says_so(tmp_path: Path):
    made = world.make_run(tmp_path / "copies", epochs=24, every=8)
    choice, _, _ = run_choose(tmp_path, {"weights": (1.6, 2.0), "weight": 1.8}, made=made)
    assert (choice.decided_by, choice.feasible) == ("retention", False)
    assert "no candidate is within all bounds" in choice.reason
    assert all(each.feasible is False for each in choice.candidates)


def test_those_that_keep_less_come_in_where_the_leaders_break_bounds(tmp_path: Path):
    """The leaders' copying shows on the last round's images alone: on the screened prompts nobody copies."""
    late = {world.SUBJECTS[number] for number in range(12, 16, 2)}

    def spoil(job: ImageJob, image: Image.Image) -> Image.Image:
        strong = job.mix and world.style_of(int(job.mix[0][0].rpartition("@")[2]), float(job.mix[0][1])) > 0.75
        return world.paint(0.9, 1.0, 0.2, job.seed) if strong and job.prompt.rpartition(", ")[2] in late else image

    world.Painter.spoil = staticmethod(spoil)
    choice, _, told = run_choose(tmp_path)
    assert any("nobody of the last round is within all bounds" in line for line in told)
    assert (choice.decided_by, choice.feasible) == ("retention", True)
    assert world.style_of(choice.epoch, choice.weight) < 0.75
    chosen = next(each for each in choice.candidates if (each.epoch, each.weight) == (choice.epoch, choice.weight))
    assert chosen.feasible is True


def test_an_encoder_that_does_not_tell_the_style_from_the_base_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = world.extractors()
    blind = dataclasses.replace(found["dinov2"], identity=dataclasses.replace(found["dinov2"].identity, id="blind"))
    seeing = found["csd"]
    towers = seeing.load()
    both = dataclasses.replace(
        found["clip"], load=lambda: dataclasses.replace(found["clip"].load(), images=towers.images)
    )
    monkeypatch.setattr("eval.look.load_extractors", lambda *_: {**found, "csd": blind, "clip": both})
    choice, _, _ = run_choose(tmp_path, {"min_fidelity": -100.0})
    assert choice.encoder == "painted clip"
    assert any("blind cannot tell the references from the base's images: AUC" in note for note in choice.notes)


def test_without_an_encoder_of_style_the_held_out_loss_decides_and_pictures_are_made_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("eval.look.load_extractors", lambda *_: world.extractors(missing=("csd", "clip")))
    losses = [ValidationPoint(epoch=epoch, step=epoch, loss=0.1 + abs(epoch - 6) / 1000) for epoch in range(2, 13, 2)]
    choice, _, _ = run_choose(tmp_path, made=world.make_run(tmp_path / "loss", validation=tuple(losses)))
    assert (choice.decided_by, choice.epoch, choice.weight) == ("held-out loss", 6, 0.8)
    assert "csd is not on this machine" in choice.reason
    assert len(choice.losses) == 6
    assert choice.reported is None
    assert len(choice.candidates) == 18
    assert all(len(each.samples) == 4 and each.retention.value is None for each in choice.candidates)
    assert choice.meaningful
    choice, _, _ = run_choose(tmp_path)
    assert (choice.decided_by, choice.epoch, choice.weight, choice.meaningful) == ("default", 12, 0.8, True)


@pytest.mark.parametrize("why", ["smoke", "base", "encoders"])
def test_what_means_nothing_is_measured_and_does_not_decide(tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("eval.look.load_extractors", lambda *_: world.extractors(meaningful=why != "encoders"))
    loss = (ValidationPoint(epoch=4, step=4, loss=0.1),)
    made = world.make_run(tmp_path / why, base_random=why == "base", validation=loss if why != "encoders" else ())
    choice, _, _ = run_choose(tmp_path, made=made, smoke=why == "smoke")
    assert (choice.decided_by, choice.epoch, choice.weight, choice.meaningful) == ("default", 12, 0.8, False)
    assert choice.candidates[0].retention.value is not None
    said = {"smoke": "a smoke run", "base": "made of random numbers", "encoders": "are made up"}[why]
    assert said in choice.reason


def test_a_budget_cuts_the_plan_and_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Budget, "measure", lambda self, *_: setattr(self, "per_image_s", 2.0))
    choice, _, _ = run_choose(tmp_path, {"budget_minutes": 6.0})
    assert any(note.startswith("to keep to the budget: seeds 1 of 2") for note in choice.notes)
    assert choice.decided_by == "retention"
    assert choice.images <= 6 * 60 / 2
    choice, _, _ = run_choose(tmp_path, {"budget_minutes": 0.5})
    assert choice.decided_by == "default"
    assert "even the coarsest choice takes more" in choice.reason
    assert choice.candidates == ()


def test_within_a_round_prompts_are_left_out_evenly_where_images_come_slower_than_the_first_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A second an image at first, ten in the middle of the first round."""
    made = world.Painter.asked

    def now() -> float:
        return len(made) + 9.0 * max(0, len(made) - 60)

    monkeypatch.setattr("time.monotonic", now)
    monkeypatch.setattr("eval.choose.stage.Budget", lambda minutes: Budget(minutes, _started=now()))
    choice, _, told = run_choose(tmp_path, {"budget_minutes": 6.0})
    first, report = (note for note in choice.notes if "were not drawn" in note)
    assert first.startswith("to keep to the budget of 6 minutes: 2 of 6 prompts of round 1 were not drawn, at ")
    assert "4 of 8 prompts of the report were not drawn" in report
    assert {f"note: {note}" for note in (first, report)} <= set(told)
    assert choice.decided_by == "retention"
    assert {each.images for each in choice.candidates} == {len(choice.chosen_on)} == {4}
    assert choice.reported is not None
    assert choice.reported.images == len(choice.reported_on) * len(choice.seeds)
    assert all(len(each.samples) == 4 for each in choice.candidates)


def test_a_run_without_choice_uses_what_training_ended_with(tmp_path: Path):
    run, trained, _ = world.make_run(tmp_path)
    found = chosen_adapter(run, trained)
    assert (found.file.name, found.epoch, found.weight) == ("inky.safetensors", 12, None)


def test_a_run_with_a_choice_uses_that_unless_it_was_trained_again(tmp_path: Path):
    made = world.make_run(tmp_path)
    choice, context, _ = run_choose(tmp_path, made=made)
    record(context.run, choice)
    assert load_choice(context.run) == choice
    found = chosen_adapter(context.run, made[1])
    assert (found.epoch, found.weight, found.sha256) == (choice.epoch, choice.weight, choice.weights_sha256)
    again = made[1].model_copy(update={"checkpoints": (), "weights_sha256": "another"})
    assert chosen_adapter(context.run, again).weight is None
    (context.run.root / choice.weights).unlink()
    assert chosen_adapter(context.run, made[1]).weight is None


def test_work_on_a_run_that_is_older_than_the_choice_begins_with_it(tmp_path: Path):
    made = world.make_run(tmp_path)
    assert [rework._start(stage, made[0]) for stage in ("choose", "convert", "evaluate", "report")] == ["choose"] * 4
    choice, context, _ = run_choose(tmp_path, {"prompts": world.SUBJECTS[:2], "weights": ()}, made=made)
    record(context.run, choice)
    assert [rework._start(stage, made[0]) for stage in ("convert", "evaluate", "report")] == [
        "convert", "choose", "report",
    ]  # fmt: skip


def record(run: Any, choice: Choice) -> None:
    kept = StageRecord(
        stage="choose", version=1, digest="d", started_at=0, ended_at=1, outputs={}, data=choice.model_dump(mode="json")
    )
    run.record("choose").parent.mkdir(exist_ok=True)
    run.record("choose").write_text(kept.model_dump_json())


def test_base_images_are_kept_whole_by_all_that_they_depend_on_and_the_oldest_go(tmp_path: Path):
    kept = KeptImages(tmp_path / "images", most_bytes=1)
    keeping = KeepsBase(world.Painter(), "base one", kept)
    job, sampling = ImageJob("a cat", 1), Sampling(steps=2, width=64, height=64)

    def asked(by: KeepsBase, one: ImageJob, how: Sampling) -> bool:
        world.Painter.asked.clear()
        image = dict(by.generate_jobs([one], how))[0]
        assert (KEPT in image.info) is not bool(world.Painter.asked)
        return bool(world.Painter.asked)

    roomy = dataclasses.replace(keeping, kept=KeptImages(tmp_path / "roomy"))
    assert asked(roomy, job, sampling)
    assert not asked(roomy, job, dataclasses.replace(sampling, batch_size=9))
    assert asked(roomy, job, dataclasses.replace(sampling, steps=3))
    assert asked(roomy, dataclasses.replace(job, negative_prompt="blurred"), sampling)
    assert asked(dataclasses.replace(roomy, made_by="base two"), job, sampling)
    file = next((tmp_path / "roomy").rglob("*.png"))
    file.write_bytes(file.read_bytes()[:50])
    list(keeping.generate_jobs([job], sampling))
    assert not list((tmp_path / "images").rglob("*.png"))


def test_images_written_aside_are_all_there_and_a_failure_is_not_lost(tmp_path: Path):
    images = [Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)) for value in range(100)]
    with Aside() as aside:
        for number, image in enumerate(images):
            aside.save(image, tmp_path / f"{number}.png")
    assert len(list(tmp_path.glob("*.png"))) == 100
    with pytest.raises(FileNotFoundError), Aside() as aside:
        aside.save(images[0], tmp_path / "no such folder" / "0.png")


def test_a_partner_is_mixed_as_it_was_chosen(tmp_path: Path):
    from eval_runs import add_run, make_spec, trained

    own = add_run(tmp_path / "runs", "cartoon", "1", trained("own", "base"))
    other = trained("last", "base").model_copy(
        update={
            "checkpoints": (world.Checkpoint(path="weights/x-000003", epoch=3, step=3, sha256="third"),),
            "epochs": 9,
        }
    )
    run = add_run(tmp_path / "runs", "anime", "1", other)
    (run.weights / "x-000003").write_bytes(b"third")
    plain = Choice(
        weights="weights/x-000003", weights_sha256="third", epoch=3, weight=0.6, decided_by="retention", feasible=True,
        reason="", meaningful=True,
    )  # fmt: skip
    record(run, plain)
    (partner,) = find_partners(make_spec(), own).chosen
    assert (partner.weights.name, partner.sha256, partner.weight, partner.epoch) == ("x-000003", "third", 0.6, 3)
    assert isinstance(other, Trained)
