"""The captioners, on made-up models of their real classes, built on the spot from configs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny_tagger import SIZE, write_tagger

from brushset.captioners import CAPTIONERS
from brushset.captioners.batches import describe_images
from brushset.captioners.filename import words_of
from brushset.captioners.wd14 import as_input
from brushset.captioners.weights import PINNED, Weights
from brushset.errors import EnvironmentProblem, InputError
from brushset.log import silent
from brushset.protocols import Subject
from brushset.spec import CaptionSection

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "cat", "dog", "house", "tree", "river", "of", "on"]
WORDS += ["in", "red", "blue", "[DEC]", "[ENC]"]
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP of one narrow layer a side, seeded, that says one of a dozen words at a time."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    config = BlipConfig(
        text_config=TINY
        | {"vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 64, "projection_dim": 16}
        | {"bos_token_id": 17, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3},
        vision_config=TINY | {"image_size": 32, "patch_size": 16, "projection_dim": 16, "initializer_range": 1.0},
        projection_dim=16,
    )
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder, safe_serialization=True)
    pixels = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(pixels, BertTokenizer(str(folder / "vocab.txt"))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A CLIP of open_clip's own classes, narrow, seeded, as "architecture/path"."""
    import open_clip
    import torch
    from open_clip import factory
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    sizes = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "tiny-test-clip.json").write_text(json.dumps(sizes))
    open_clip.add_model_config(folder / "tiny-test-clip.json")
    torch.manual_seed(0)
    save_file(open_clip.create_model("tiny-test-clip").state_dict(), folder / "weights.safetensors")
    yield f"tiny-test-clip/{folder / 'weights.safetensors'}"
    factory._MODEL_CONFIGS.pop("tiny-test-clip")
    factory._MODEL_CONFIG_PATHS.remove(folder / "tiny-test-clip.json")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{index}.png" for index in range(3)]
    for path, colour in zip(paths, ("red", "blue", "white"), strict=True):
        Image.new("RGB", (64, 48), colour).save(path)
    return [Subject(path, folder / f"photo of {path.stem}.jpg") for path in paths]


@pytest.fixture(autouse=True)
def no_answers_from_other_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brushset.captioners.answers.cache_dir", lambda: tmp_path / "answers")


def describe(name: str, section: CaptionSection, images: list[Subject]) -> list[str]:
    """What a captioner of the table says, through the batches that the stage uses."""
    return describe_images(CAPTIONERS[name](section), images, silent)


@pytest.fixture
def few_phrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """clip-interrogator's 106 000 phrases, cut to five of a kind."""
    from clip_interrogator import clip_interrogator

    whole = clip_interrogator.load_list
    monkeypatch.setattr(clip_interrogator, "load_list", lambda *place: whole(*place)[:5])


def test_every_captioner_that_a_style_may_name_is_in_the_table():
    named = CaptionSection.model_fields["captioner"].annotation.__args__
    assert sorted(CAPTIONERS) == sorted(named)
    assert all(make(CaptionSection()).name == name for name, make in CAPTIONERS.items())


def test_trigger_only_says_nothing_of_any_image(images: list[Subject]):
    assert describe("trigger-only", CaptionSection(), images) == ["", "", ""]


def test_blip_captions_do_not_depend_on_the_batch_size(blip: Path, images: list[Subject]):
    captions = [describe("blip", CaptionSection(model=str(blip), batch_size=size), images) for size in (1, 2)]
    assert captions[0] == captions[1]
    assert len(captions[0]) == 3
    assert all(set(caption.split()) <= set(WORDS) for caption in captions[0])
    assert any(captions[0])


def test_progress_is_told_batch_by_batch_with_rate_and_time_left(blip: Path, images: list[Subject]):
    heard: list[tuple[object, object]] = []

    def emit(event: str, /, **fields: object) -> None:
        assert event == "progress"
        assert float(str(fields["per_s"])) > 0
        heard.append((fields["done"], float(str(fields["eta_s"])) == 0))

    describe_images(CAPTIONERS["blip"](CaptionSection(model=str(blip), batch_size=2)), images, emit)
    assert heard == [(2, False), (3, True)]


@pytest.mark.parametrize("name", ["Salesforce/blip-image-captioning-large", "/no/such/folder"])
def test_a_blip_that_is_not_to_be_had_is_one_line_with_a_fix(name: str, images: list[Subject]):
    with pytest.raises(EnvironmentProblem) as caught:
        describe("blip", CaptionSection(model=name), images)
    message = str(caught.value)
    assert name in message
    assert "fix:" in message
    assert "\n" not in message


def test_blip_in_a_pickle_is_refused(blip: Path, images: list[Subject], tmp_path: Path):
    import torch
    from safetensors.torch import load_file

    for path in blip.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(blip / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(EnvironmentProblem):
        describe("blip", CaptionSection(model=str(tmp_path)), images)


@pytest.mark.parametrize("mode", ["fast", "classic"])
@pytest.mark.usefixtures("few_phrases")
def test_the_interrogator_adds_ranked_phrases_to_blips_sentence(
    mode: str, blip: Path, clip: str, images: list[Subject], capsys: pytest.CaptureFixture[str]
):
    section = CaptionSection(model=str(blip), clip_model=clip, mode=mode)
    sentences = describe("blip", section, images)
    captions = describe("interrogator", section, images)
    assert len(captions) == len(images)
    for sentence, caption in zip(sentences, captions, strict=True):
        assert caption.startswith(sentence)
        assert caption.count(",") >= 3
    assert capsys.readouterr().out == ""


def test_the_interrogators_caption_mode_needs_no_clip(blip: Path, images: list[Subject]):
    section = CaptionSection(model=str(blip), clip_model="no-such/model", mode="caption")
    assert describe("interrogator", section, images) == describe("blip", section, images)


@pytest.mark.parametrize("name", ["ViT-L-14/openai", "no-such/model", "ViT-L-14/weights.pt"])
def test_a_clip_that_is_not_to_be_had_is_one_line_with_a_fix(name: str, blip: Path, images: list[Subject]):
    with pytest.raises(EnvironmentProblem) as caught:
        describe("interrogator", CaptionSection(model=str(blip), clip_model=name), images)
    assert f'"{name}"' in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("few_phrases")
def test_phrase_tables_are_kept_in_the_cache_under_the_weights_digest(
    blip: Path, clip: str, images: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BRUSHSET_CACHE", str(tmp_path / "cache"))
    section = CaptionSection(model=str(blip), clip_model=clip, mode="fast")
    describe("interrogator", section, images[:1])
    tables = sorted(path.name for path in (tmp_path / "cache" / "clip-interrogator").iterdir())
    assert len(tables) == 6
    assert all(name.startswith("tiny-test-clip_") and name.endswith(".safetensors") for name in tables)
    assert not (Path.cwd() / "cache").exists()


@pytest.mark.usefixtures("few_phrases")
def test_ready_made_phrase_tables_are_fetched_at_a_pinned_commit_and_used(
    blip: Path, clip: str, images: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    section = CaptionSection(model=str(blip), clip_model=clip, mode="classic")
    monkeypatch.setenv("BRUSHSET_CACHE", str(tmp_path / "first"))
    made = describe("interrogator", section, images[:1])
    tables = sorted((tmp_path / "first" / "clip-interrogator").iterdir())
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for table in tables:
        (snapshot / table.name).write_bytes(table.read_bytes())
    asked: list[tuple[str, str | None]] = []

    def fetch(model: str, patterns: tuple[str, ...], *, revision: str | None = None) -> Path:
        assert all(pattern.endswith("_*.safetensors") for pattern in patterns)
        asked.append((model, revision))
        return snapshot

    monkeypatch.setattr("brushset.captioners.weights.fetch_repository", fetch)
    monkeypatch.setattr("brushset.captioners.answers.cache_dir", lambda: tmp_path / "other answers")
    monkeypatch.setenv("BRUSHSET_CACHE", str(tmp_path / "second"))
    assert describe("interrogator", section, images[:1]) == made
    assert asked == [("pharmapsychotic/ci-preprocess", PINNED["pharmapsychotic/ci-preprocess"])]
    used = sorted((tmp_path / "second" / "clip-interrogator").iterdir())
    assert [path.name for path in used] == [path.name for path in tables]
    assert all(path.samefile(snapshot / path.name) for path in used)  # linked, not made again


@pytest.mark.usefixtures("few_phrases")
def test_without_a_network_the_tables_are_made_here_and_that_is_told(
    blip: Path, clip: str, images: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BRUSHSET_CACHE", str(tmp_path / "cache"))
    heard: list[str] = []
    captioner = CAPTIONERS["interrogator"](CaptionSection(model=str(blip), clip_model=clip, mode="fast"))
    describe_images(captioner, images[:1], lambda _event, **fields: heard.append(str(fields.get("text", ""))))
    assert any("no ready-made phrase tables" in text for text in heard)
    assert any("made here, once" in text for text in heard)


def test_file_names_become_words():
    named = {
        "a_red-fox_in snow (3)": "a red fox in snow",
        "IMG_20240101_123456": "",
        "DSC00042": "",
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301": "",
        "d41d8cd98f00b204e9800998ecf8427e": "",
        "cat.on.a.mat.1024x768": "cat on a mat",
        "two cats, sleeping, 002": "two cats, sleeping",
        "flopsy_image019": "flopsy",
        "PXL_20230405 old mill": "old mill",
        "facade of a house v2": "facade of a house",
        "caf\u0065\u0301_au_lait": "caf\u00e9 au lait",
        "cat cat (copy)": "cat",
        "\U0001f3a8 easel": "\U0001f3a8 easel",
        "it's_a_dog's_life": "it's a dog's life",
        "": "",
    }
    assert {name: words_of(name) for name in named} == named


def test_the_filename_captioner_reads_the_users_names_not_ours(images: list[Subject]):
    assert describe("filename", CaptionSection(), images) == ["of", "of", "of"]


def test_without_sidecars_the_sidecar_captioner_names_all_that_lack_one(images: list[Subject]):
    folder = images[0].source.parent
    (folder / "photo of 1.txt").write_text(" \n")
    with pytest.raises(InputError) as caught:
        describe("sidecar", CaptionSection(), images)
    (folder / "photo of 1.txt").unlink()
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "photo of 0.txt: not there" in lines[0]
    assert "photo of 1.txt: empty" in lines[1]
    assert lines[3].startswith("3 images have no caption of their own; fix:")


def test_many_missing_sidecars_are_counted_not_listed(images: list[Subject]):
    with pytest.raises(InputError, match="… and 280 more") as caught:
        describe("sidecar", CaptionSection(), images * 100)
    assert len(str(caught.value).splitlines()) == 22


def test_wd14_sees_bgr_on_white_and_sorts_and_filters_tags(images: list[Subject], tmp_path: Path):
    section = CaptionSection(tagger=str(write_tagger(tmp_path / "tagger")), tag_threshold=0.35, batch_size=2)
    red, blue, white = describe("wd14", section, images)
    assert red == "hatsune miku, red hair, ^_^"
    assert blue == "hatsune miku, blue sky, ^_^"
    assert white == "hatsune miku, red hair, blue sky, ^_^"
    bold = section.model_copy(update={"tag_threshold": 0.2, "character_threshold": 0.7})
    assert describe("wd14", bold, images[:1]) == ["hatsune miku, doubtful person, red hair, ^_^, faint tag"]


def test_wd14_pads_to_a_square_and_resizes():
    pixels = as_input(Image.new("RGB", (64, 16), (10, 20, 30)), SIZE)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == "float32"
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[SIZE // 2, SIZE // 2].tolist() == [30, 20, 10]


@pytest.mark.parametrize("batch", [1, 2])
def test_wd14_honours_a_model_whose_batch_is_fixed(batch: int, images: list[Subject], tmp_path: Path):
    free = CaptionSection(tagger=str(write_tagger(tmp_path / "free")))
    fixed = CaptionSection(tagger=str(write_tagger(tmp_path / "fixed", batch=batch)))
    assert describe("wd14", fixed, images) == describe("wd14", free, images)


def test_a_tagger_whose_tags_do_not_fit_is_refused_with_both_numbers(images: list[Subject], tmp_path: Path):
    with pytest.raises(EnvironmentProblem) as caught:
        describe("wd14", CaptionSection(tagger=str(write_tagger(tmp_path, rows=5))), images)
    assert "8 outputs, and 5 rows" in caught.value.detail


@pytest.mark.parametrize("name", ["SmilingWolf/wd-vit-tagger-v3", "/no/such/folder", "."])
def test_a_tagger_that_is_not_to_be_had_is_one_line_with_a_fix(name: str, images: list[Subject]):
    with pytest.raises(EnvironmentProblem, match=r"caption\.tagger=FOLDER") as caught:
        describe("wd14", CaptionSection(tagger=name), images)
    assert "\n" not in str(caught.value)


def test_the_defaults_are_pinned_to_commits_and_a_revision_overrules_them():
    section = CaptionSection()
    assert {section.model, section.tagger} <= set(PINNED)
    assert all(len(commit) == 40 for commit in PINNED.values())
    assert Weights(section.model, None, (), ()).identity() == f"{section.model}@{PINNED[section.model]}"
    assert Weights(section.model, "a" * 40, (), ()).identity() == f"{section.model}@{'a' * 40}"


def test_a_folder_of_weights_is_known_by_its_content(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    weights = Weights(str(tmp_path), None, (), ("*.safetensors",))
    before = weights.identity()
    (tmp_path / "README.md").write_text("no weights")
    assert weights.identity() == before
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert weights.identity() != before
