"""Captions: who is heard before whom, the trigger first and once, and a user's edit is never lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from brushset import files
from brushset.captioners import CAPTIONERS
from brushset.captions.earlier import look_back
from brushset.captions.text import read_caption, with_trigger
from brushset.errors import InputError
from brushset.log import silent
from brushset.paths import RunPaths
from brushset.pipeline import Pipeline
from brushset.protocols import Describe, Emit, Subject
from brushset.records import Captions
from brushset.spec import CaptionSection, DatasetSection, StyleSpec, TrainSection
from brushset.stages import audit, caption, preprocess

STAGES = (audit.STAGE, preprocess.STAGE, caption.STAGE)


class Counting:
    """A captioner that says "picture" and remembers for how many images it was asked."""

    name = "trigger-only"
    settings = ""
    asked: list[int]

    batch_size = 100

    def __init__(self, section: CaptionSection) -> None:
        pass

    def weights(self) -> str:
        return ""

    def load(self, emit: Emit) -> Describe:
        return self.describe

    def describe(self, subjects: Sequence[Subject]) -> list[str]:
        self.asked.append(len(subjects))
        assert all(subject.image.is_file() and subject.source.is_file() for subject in subjects)
        return ["a picture" for _ in subjects]


class Case:
    """A folder of three images and runs over it."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "in"
        self.folder.mkdir()
        for name, colour in (("a", "red"), ("b", "lime"), ("c", "blue")):
            Image.new("RGB", (512, 512), colour).save(self.folder / f"{name}.png")
        self.pipeline: Pipeline

    def run(self, run_id: str = "one", *, force: str | None = None, **more: Any) -> dict[str, tuple[str, str]]:
        """Image's source → its caption and where that came from, as recorded; checked against the files."""
        spec = StyleSpec(
            name="mine", trigger=more.pop("trigger", "mystyle"), dataset=DatasetSection(images=str(self.folder)),
            caption=CaptionSection(captioner="trigger-only", **more),
        )  # fmt: skip
        donors = [RunPaths(path) for path in sorted(self.root.glob("runs/mine/*")) if path.name != run_id]
        self.pipeline = Pipeline(spec, RunPaths(self.root / "runs" / "mine" / run_id), silent, donors)
        self.worked = self.pipeline.execute(STAGES, force=force)
        record = Captions.model_validate(self.pipeline.done["caption"].data)
        sources = {image["name"]: image["source"][0] for image in self.pipeline.done["preprocess"].data["images"]}
        for item in record.captions:
            assert self.text_of(sources[item.image]).read_bytes() == f"{item.text}\n".encode()
        return {sources[item.image]: (item.text, item.source) for item in record.captions}

    def text_of(self, source: str) -> Path:
        """The caption file in the run's images/."""
        images = self.pipeline.done["preprocess"].data["images"]
        name = next(image["name"] for image in images if image["source"][0] == source)
        return (self.pipeline.run.images / name).with_suffix(".txt")


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setitem(CAPTIONERS, "trigger-only", Counting)
    Counting.asked = []
    return Case(tmp_path)


@pytest.mark.parametrize(
    ("text", "caption_"),
    [
        ("", "mystyle"),
        ("mystyle", "mystyle"),
        ("a cat", "mystyle, a cat"),
        ("mystyle, a cat", "mystyle, a cat"),
        ("a cat, mystyle, sitting", "mystyle, a cat, sitting"),
        ("mystyle a cat", "mystyle, a cat"),
        ("MyStyle ,  a   cat,,", "mystyle, a cat"),
        ("mystyles, a cat", "mystyle, mystyles, a cat"),
        ("a cat in mystyle", "mystyle, a cat in mystyle"),
        (" , ", "mystyle"),
    ],
)
def test_the_trigger_is_the_first_part_and_the_only_such_part(text: str, caption_: str):
    assert with_trigger(text, "mystyle") == caption_


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"])))
def test_putting_the_trigger_first_twice_changes_nothing(text: str):
    once = with_trigger(text, "(my) style*")
    assert with_trigger(once, "(my) style*") == once
    assert once.split(",")[0] == "(my) style*"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a cat", "a cat"),
        (b"\xef\xbb\xbfa cat\r\n", "a cat"),
        (b"a cat,\n\n  on a mat  \n", "a cat, on a mat"),
        ("a caf\u00e9 \U0001f3a8".encode(), "a caf\u00e9 \U0001f3a8"),
        (b"a\tcat\x00\x1b[31m", "a cat[31m"),
        (b" \n ", ""),
    ],
)
def test_a_caption_file_is_read_as_one_line(content: bytes, text: str, tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(content)
    assert read_caption(tmp_path / "a.txt") == text


def test_images_without_any_text_go_to_the_captioner(case: Case):
    assert case.run() == dict.fromkeys("abc", ("mystyle, a picture", "trigger-only"))
    assert Counting.asked == [3]


def test_the_real_trigger_only_captions_are_the_trigger(tmp_path: Path):
    assert Case(tmp_path).run() == dict.fromkeys("abc", ("mystyle", "trigger-only"))


def test_a_sidecar_wins_over_the_captioner_unless_it_is_empty(case: Case):
    (case.folder / "a.txt").write_bytes(b"\xef\xbb\xbfa red square,\r\nmystyle\r\n")
    (case.folder / "b.txt").write_text(" \n")
    result = case.run()
    assert result["a"] == ("mystyle, a red square", "sidecar")
    assert result["b"] == ("mystyle, a picture", "trigger-only")
    assert Counting.asked == [2]


def test_sidecars_that_are_not_utf8_are_all_named(case: Case):
    for name in "ac":
        (case.folder / f"{name}.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError) as caught:
        case.run()
    lines = str(caught.value).splitlines()
    assert [Path(line.split(":")[0]).name for line in lines] == ["a.txt", "c.txt"]
    assert all("fix: save it as UTF-8" in line for line in lines)


def test_a_sidecar_that_leads_out_of_the_folder_is_refused_by_name(case: Case):
    (case.root / "secret.txt").write_text("elsewhere")
    (case.folder / "a.txt").symlink_to(case.root / "secret.txt")
    (case.folder / "words.txt").write_text("a tree")
    (case.folder / "b.txt").symlink_to("words.txt")
    with pytest.raises(InputError, match=r"a\.txt: a link out of the folder, to .*secret\.txt; fix: copy") as raised:
        case.run()
    assert "b.txt" not in str(raised.value)
    (case.folder / "a.txt").unlink()
    assert case.run()["b"] == ("mystyle, a tree", "sidecar")


def test_a_second_run_does_nothing(case: Case):
    case.run()
    case.run()
    assert case.worked == 0
    assert Counting.asked == [3]


def test_a_changed_sidecar_is_taken_up_and_re_does_neither_audit_nor_images(case: Case):
    (case.folder / "a.txt").write_text("a cat")
    case.run()
    (case.folder / "a.txt").write_text("a dog")
    assert case.run()["a"] == ("mystyle, a dog", "sidecar")
    assert case.worked == 1


def test_an_edited_caption_is_kept_and_the_others_are_not_captioned_again(case: Case):
    case.run()
    case.text_of("b").write_text("a lime square\nby hand")
    result = case.run()
    assert result["b"] == ("mystyle, a lime square, by hand", "edited")
    assert result["a"] == ("mystyle, a picture", "trigger-only")
    assert Counting.asked == [3]
    case.run()
    assert case.worked == 0


def test_an_edit_outlives_everything_but_its_deletion(case: Case):
    (case.folder / "b.txt").write_text("from the sidecar")
    case.run()
    case.text_of("b").write_text("by hand")
    case.run()
    (case.folder / "b.txt").write_text("another sidecar")
    assert case.run()["b"] == ("mystyle, by hand", "edited")
    assert case.run(batch_size=3)["b"] == ("mystyle, by hand", "edited")
    assert case.run(force="caption")["b"] == ("mystyle, by hand", "edited")
    assert case.run(force="preprocess")["b"] == ("mystyle, by hand", "edited")
    assert case.run(trigger="other")["b"] == ("other, by hand", "edited")
    case.text_of("b").unlink()
    assert case.run(trigger="other")["b"] == ("other, another sidecar", "sidecar")


def test_an_edited_caption_survives_an_image_that_comes_or_goes(case: Case):
    case.run()
    case.text_of("b").write_text("by hand")
    Image.new("RGB", (512, 512), "white").save(case.folder / "d.png")
    result = case.run()
    assert result["b"] == ("mystyle, by hand", "edited")
    assert result["d"] == ("mystyle, a picture", "trigger-only")


def test_an_emptied_caption_becomes_the_trigger_alone(case: Case):
    case.run()
    case.text_of("c").write_text("")
    assert case.run()["c"] == ("mystyle", "edited")


def test_a_deleted_caption_is_written_again_and_only_that(case: Case):
    case.run()
    case.text_of("c").unlink()
    assert case.run()["c"] == ("mystyle, a picture", "trigger-only")
    assert Counting.asked == [3]


def test_force_asks_the_captioner_for_all_again(case: Case):
    case.run()
    case.run(force="caption")
    assert Counting.asked == [3, 3]


def test_other_captioner_settings_ask_for_all_again_but_for_edits(case: Case, monkeypatch: pytest.MonkeyPatch):
    case.run()
    case.text_of("a").write_text("by hand")
    monkeypatch.setattr(Counting, "settings", "another model")
    case.run(model="another")
    assert Counting.asked == [3, 2]


def test_a_new_run_takes_captions_over_with_the_edits(case: Case):
    case.run("one")
    case.text_of("b").write_text("by hand")
    result = case.run("two")
    assert result["b"] == ("mystyle, by hand", "edited")
    assert Counting.asked == [3]


def test_edits_are_not_overwritten_by_another_runs_untouched_captions(case: Case):
    case.run("one")
    case.run("two")
    assert Counting.asked == [3]
    case.text_of("b").write_text("by hand")
    assert case.run("two")["b"] == ("mystyle, by hand", "edited")


def test_an_unreadable_edit_is_named_and_not_overwritten(case: Case):
    case.run()
    path = case.text_of("a")
    path.write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        case.run()
    assert path.read_bytes() == b"caf\xe9"


class Crash(BaseException):
    """The process ends here."""


def crash_after_publishing(case: Case, monkeypatch: pytest.MonkeyPatch, run_id: str = "one", **more: Any) -> None:
    """The captions get into images/, the stage's record does not get written."""

    def write_json(path: Path, value: object) -> None:
        if path.name == "caption.json":
            raise Crash
        files.write_json(path, value)

    with monkeypatch.context() as patched:
        patched.setattr("brushset.pipeline.write_json", write_json)
        with pytest.raises(Crash):
            case.run(run_id, **more)


def test_a_crash_before_the_record_makes_no_edits_of_machine_captions(case: Case, monkeypatch: pytest.MonkeyPatch):
    crash_after_publishing(case, monkeypatch)
    assert len(list(case.root.glob("runs/mine/one/images/*.txt"))) == 3
    assert case.run() == dict.fromkeys("abc", ("mystyle, a picture", "trigger-only"))


def test_a_crash_keeps_the_edits_that_were_there(case: Case, monkeypatch: pytest.MonkeyPatch):
    (case.folder / "a.txt").write_text("from the sidecar")
    case.run()
    case.text_of("b").write_text("by hand")
    crash_after_publishing(case, monkeypatch, trigger="other")
    assert case.run(trigger="other") == {
        "a": ("other, from the sidecar", "sidecar"),
        "b": ("other, by hand", "edited"),
        "c": ("other, a picture", "trigger-only"),
    }


def test_a_crash_amid_publishing_leaves_old_and_new_texts_and_neither_is_an_edit(
    case: Case, monkeypatch: pytest.MonkeyPatch
):
    case.run()
    old = case.text_of("c").read_bytes()
    crash_after_publishing(case, monkeypatch, trigger="other")
    case.text_of("c").write_bytes(old)
    assert case.run(trigger="other") == dict.fromkeys("abc", ("other, a picture", "trigger-only"))


def test_a_second_crash_changes_nothing(case: Case, monkeypatch: pytest.MonkeyPatch):
    case.run()
    case.text_of("b").write_text("by hand")
    crash_after_publishing(case, monkeypatch, batch_size=2)
    crash_after_publishing(case, monkeypatch, batch_size=3)
    case.text_of("c").write_text("after the crash")
    result = case.run(batch_size=3)
    assert result["a"] == ("mystyle, a picture", "trigger-only")
    assert result["b"] == ("mystyle, by hand", "edited")
    assert result["c"] == ("mystyle, after the crash", "edited")


def test_a_crash_while_another_runs_captions_come_over_makes_no_edits(case: Case, monkeypatch: pytest.MonkeyPatch):
    case.run("one")
    case.text_of("b").write_text("by hand")
    crash_after_publishing(case, monkeypatch, "two")
    assert not (case.root / "runs/mine/two/records/caption.json").exists()
    result = case.run("two")
    assert result["a"] == ("mystyle, a picture", "trigger-only")
    assert result["b"] == ("mystyle, by hand", "edited")


def test_an_edit_back_to_an_older_machine_caption_is_an_edit(case: Case, monkeypatch: pytest.MonkeyPatch):
    case.run()
    monkeypatch.setattr(Counting, "settings", "another model")
    monkeypatch.setattr(Counting, "describe", lambda _self, subjects: ["something else" for _ in subjects])
    case.run(model="another")
    case.text_of("b").write_text("mystyle, a picture")
    assert case.run(model="another")["b"] == ("mystyle, a picture", "edited")


def test_style_words_go_from_machine_captions_and_stay_in_the_users(case: Case, monkeypatch: pytest.MonkeyPatch):
    heard: list[str] = []
    monkeypatch.setattr(
        Counting, "describe", lambda _self, subjects: ["a watercolor painting of a cat"] * len(subjects)
    )
    monkeypatch.setattr("test_caption.silent", lambda _event, **fields: heard.append(str(fields.get("text", ""))))
    (case.folder / "a.txt").write_text("a watercolor of a dog")
    result = case.run()
    assert result["a"] == ("mystyle, a watercolor of a dog", "sidecar")
    assert result["b"] == ("mystyle, a cat", "trigger-only")
    record = Captions.model_validate(case.pipeline.done["caption"].data)
    assert record.captions[1].said == "a watercolor painting of a cat"
    assert {item.stripped for item in record.captions} == {(), ("watercolor", "painting of")}
    assert record.kept_style_words == {"watercolor": 1}
    assert any("style words taken from 2 captions: watercolor 2×, painting of 2×" in text for text in heard)
    assert any("your own captions name the style: watercolor 1×" in text for text in heard)


def test_other_style_words_ask_nobody_anew(case: Case, monkeypatch: pytest.MonkeyPatch):
    assert case.run(style_words=("picture",))["a"] == ("mystyle", "trigger-only")
    assert case.run(style_words=())["a"] == ("mystyle, a picture", "trigger-only")
    assert Counting.asked == [3]


def test_held_out_images_are_captioned_where_they_lie(tmp_path: Path):
    case = Case(tmp_path)
    for shade in range(20):
        picture = Image.effect_noise((512, 512), 60 + shade).convert("RGB")
        picture.save(case.folder / f"n{shade:02d}.png")
    spec = StyleSpec(
        name="mine", trigger="mystyle", caption=CaptionSection(captioner="filename"),
        dataset=DatasetSection(images=str(case.folder), holdout=0.2, holdout_from=5, min_images=2),
    )  # fmt: skip
    pipeline = Pipeline(spec, RunPaths(tmp_path / "runs" / "mine" / "one"), silent)
    pipeline.execute(STAGES)
    held = [image["name"] for image in pipeline.done["preprocess"].data["heldout"]]
    record = Captions.model_validate(pipeline.done["caption"].data)
    assert held
    assert {item.image for item in record.captions} >= set(held)
    for name in held:
        assert (pipeline.run.images / name).with_suffix(".txt").read_text().startswith("mystyle")


def test_an_edit_follows_its_image_out_of_the_held_out_ones(case: Case):
    run = RunPaths(case.root / "runs" / "mine" / "one")
    run.heldout.mkdir(parents=True)
    (run.heldout / "abc.txt").write_text("mystyle, by hand\n")
    assert look_back(run, ["abc.png"], None).edit_of("abc") == "mystyle, by hand"


def test_a_trigger_that_would_be_shuffled_away_stops_before_training(case: Case):
    spec = StyleSpec(
        name="mine", trigger="mystyle", caption=CaptionSection(captioner="trigger-only"),
        dataset=DatasetSection(images=str(case.folder)),
        train=TrainSection(keep_tokens=0, extra={"caption_tag_dropout_rate": 0.1}),
    )  # fmt: skip
    pipeline = Pipeline(spec, RunPaths(case.root / "runs" / "mine" / "one"), silent)
    with pytest.raises(InputError, match="tag dropout moves or drops the trigger") as caught:
        pipeline.execute(STAGES)
    assert "\n" not in str(caught.value)


def test_tokens_are_counted_and_what_is_found_is_recorded(case: Case):
    (case.folder / "a.txt").write_text("a cat on " + "very " * 90 + "soft grass")
    case.run()
    record = Captions.model_validate(case.pipeline.done["caption"].data)
    assert record.token_limit == 75
    assert max(item.tokens for item in record.captions) > 90
    assert {"too-long", "stuck"} <= {finding.code for finding in record.findings}
