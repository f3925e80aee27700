"""The captioners, on made-up models of their real classes, built on the spot from configs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from brushset.captioners import CAPTIONERS
from brushset.errors import EnvironmentProblem
from brushset.log import silent
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
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{index}.png" for index in range(3)]
    for path, colour in zip(paths, ("red", "blue", "white"), strict=True):
        Image.new("RGB", (64, 48), colour).save(path)
    return paths


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


def test_trigger_only_says_nothing_of_any_image(images: list[Path]):
    assert CAPTIONERS["trigger-only"](CaptionSection()).describe(images, silent) == ["", "", ""]


def test_blip_captions_do_not_depend_on_the_batch_size(blip: Path, images: list[Path]):
    captions = [
        CAPTIONERS["blip"](CaptionSection(model=str(blip), batch_size=size)).describe(images, silent) for size in (1, 2)
    ]
    assert captions[0] == captions[1]
    assert len(captions[0]) == 3
    assert all(set(caption.split()) <= set(WORDS) for caption in captions[0])
    assert any(captions[0])


def test_blip_reports_progress_image_by_image(blip: Path, images: list[Path]):
    heard: list[tuple[str, object]] = []
    captioner = CAPTIONERS["blip"](CaptionSection(model=str(blip), batch_size=2))
    captioner.describe(images, lambda event, **fields: heard.append((event, fields["done"])))
    assert heard == [("progress", 2), ("progress", 3)]


@pytest.mark.parametrize("name", ["Salesforce/blip-image-captioning-large", "/no/such/folder"])
def test_a_blip_that_is_not_to_be_had_is_one_line_with_a_fix(name: str, images: list[Path]):
    with pytest.raises(EnvironmentProblem) as caught:
        CAPTIONERS["blip"](CaptionSection(model=name)).describe(images, silent)
    message = str(caught.value)
    assert name in message
    assert "fix:" in message
    assert "\n" not in message


def test_blip_in_a_pickle_is_refused(blip: Path, images: list[Path], tmp_path: Path):
    import torch
    from safetensors.torch import load_file

    for path in blip.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(blip / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(EnvironmentProblem):
        CAPTIONERS["blip"](CaptionSection(model=str(tmp_path))).describe(images, silent)


@pytest.mark.parametrize("mode", ["fast", "classic"])
@pytest.mark.usefixtures("few_phrases")
def test_the_interrogator_adds_ranked_phrases_to_blips_sentence(
    mode: str, blip: Path, clip: str, images: list[Path], capsys: pytest.CaptureFixture[str]
):
    section = CaptionSection(model=str(blip), clip_model=clip, mode=mode)
    sentences = CAPTIONERS["blip"](section).describe(images, silent)
    captions = CAPTIONERS["interrogator"](section).describe(images, silent)
    assert len(captions) == len(images)
    for sentence, caption in zip(sentences, captions, strict=True):
        assert caption.startswith(sentence)
        assert caption.count(",") >= 3
    assert capsys.readouterr().out == ""


def test_the_interrogators_caption_mode_needs_no_clip(blip: Path, images: list[Path]):
    section = CaptionSection(model=str(blip), clip_model="no-such/model", mode="caption")
    assert CAPTIONERS["interrogator"](section).describe(images, silent) == CAPTIONERS["blip"](section).describe(
        images, silent
    )


@pytest.mark.parametrize("name", ["ViT-L-14/openai", "no-such/model", "ViT-L-14/weights.pt"])
def test_a_clip_that_is_not_to_be_had_is_one_line_with_a_fix(name: str, blip: Path, images: list[Path]):
    with pytest.raises(EnvironmentProblem) as caught:
        CAPTIONERS["interrogator"](CaptionSection(model=str(blip), clip_model=name)).describe(images, silent)
    assert f'"{name}"' in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("few_phrases")
def test_phrase_tables_are_kept_in_the_cache_under_the_weights_digest(
    blip: Path, clip: str, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("BRUSHSET_CACHE", str(tmp_path / "cache"))
    section = CaptionSection(model=str(blip), clip_model=clip, mode="fast")
    CAPTIONERS["interrogator"](section).describe(images[:1], silent)
    tables = sorted(path.name for path in (tmp_path / "cache" / "clip-interrogator").iterdir())
    assert len(tables) == 6
    assert all(name.startswith("tiny-test-clip_") and name.endswith(".safetensors") for name in tables)
    assert not (Path.cwd() / "cache").exists()
