from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from brushset.bases.tokenizer import byte_symbols, clip_tokenizer_folder, tokenizer_dir
from brushset.errors import EnvironmentProblem
from brushset.records import BaseFile

TEXTS = [
    "a portrait of a girl",
    "anistyle, 1girl, blue hair!!",
    "Ünïcode naïve café — 12345 don't",
    "",
    "  spaced   OUT \t tabs ",
    "wcstyle, a cat (sitting:1.2)",
    "日本語 emoji 😀",
    "it's we'll you've #@$ <b> 50% & more",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["CLIPTokenizer", "CLIPTokenizerFast"])
def test_it_tokenises_as_open_clip_does(kind: str, text: str) -> None:
    import open_clip
    import transformers

    theirs = [int(token) for token in open_clip.get_tokenizer("ViT-L-14")(text)[0]]
    theirs = theirs[: theirs.index(49407) + 1]
    tokenizer = getattr(transformers, kind).from_pretrained(clip_tokenizer_folder())
    assert tokenizer(text).input_ids == theirs


def test_it_pads_with_the_end_token_to_77_and_knows_49408_tokens() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(clip_tokenizer_folder())
    ids = tokenizer("cat", padding="max_length").input_ids
    assert (len(ids), ids[2:], len(tokenizer)) == (77, [49407] * 75, 49408)


def test_each_byte_has_a_symbol_of_its_own() -> None:
    assert len(set(byte_symbols())) == 256


def test_the_folder_is_laid_out_as_sd_scripts_looks_for_it(tiny_base: BaseFile) -> None:
    folder = tokenizer_dir(tiny_base) / "openai_clip-vit-large-patch14"
    assert {path.name for path in folder.iterdir()} >= {"vocab.json", "merges.txt", "tokenizer_config.json"}
    assert tokenizer_dir(tiny_base) == tokenizer_dir(tiny_base)


def test_the_base_models_own_tokenizer_is_preferred(tiny_base: BaseFile, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny_base.path, tmp_path / "model"))
    settings = own / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "of_their_own": 1}))
    base = tiny_base.model_copy(update={"path": str(own)})
    assert "of_their_own" in (tokenizer_dir(base) / "openai_clip-vit-large-patch14" / settings.name).read_text()


def test_a_base_without_tokenizer_gets_ours(tiny_base: BaseFile, tmp_path: Path) -> None:
    single = tiny_base.model_copy(update={"path": str(tmp_path / "x.safetensors"), "kind": "single-file"})
    empty = tiny_base.model_copy(update={"path": str(tmp_path)})
    assert tokenizer_dir(single) == tokenizer_dir(empty) == clip_tokenizer_folder().parent


def test_a_missing_open_clip_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRUSHSET_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(EnvironmentProblem, match="uv sync"):
        clip_tokenizer_folder()
