"""CLIP's tokenizer without a model hub: the folder that transformers and sd-scripts read, from open_clip's BPE file.

open_clip ships the merges that CLIP was trained with (bpe_simple_vocab_16e6.txt.gz); vocabulary and ids follow from
them by CLIP's rule: 256 byte symbols, the same with an end-of-word mark, one token a merge, two specials: 49408.
Source of the rule: openai/CLIP clip/simple_tokenizer.py, MIT.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from brushset.bases.keep import make_once
from brushset.errors import EnvironmentProblem
from brushset.files import digest_files, sha256_json, write_atomic, write_json
from brushset.paths import cache_dir
from brushset.records import BaseFile

_KOHYA_NAME = "openai_clip-vit-large-patch14"  # sd-scripts, library/strategy_sd.py: TOKENIZER_ID with / as _
_MERGES = 49152 - 256 - 2  # CLIP's vocabulary holds this many, the file holds more
_START, _END = "<|startoftext|>", "<|endoftext|>"
_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")


def write_tokenizer(folder: Path) -> None:
    """Writes CLIP's tokenizer as transformers' CLIPTokenizer and CLIPTokenizerFast read it.

    Raises:
        EnvironmentProblem: open_clip or its BPE file is not installed.
    """
    merges = _read_merges()
    symbols = byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += [_START, _END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    write_atomic(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")))
    write_atomic(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"content": _END, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    names = {"bos_token": {**special, "content": _START}, "eos_token": special, "unk_token": special}
    write_json(folder / "special_tokens_map.json", {**names, "pad_token": _END})
    settings = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    typed = {key: {**value, "__type": "AddedToken"} for key, value in names.items()}
    write_json(
        folder / "tokenizer_config.json",
        {**settings, **typed, "pad_token": _END, "tokenizer_class": "CLIPTokenizer"},
    )


def tokenizer_dir(base: BaseFile) -> Path:
    """The folder for sd-scripts' --tokenizer_cache_dir: the base model's own tokenizer where it has one, else ours."""
    own = Path(base.path) / "tokenizer"
    if base.kind == "folder" and all((own / name).is_file() for name in _FILES[:2]):
        return _cached(own)
    return clip_tokenizer_folder().parent


def clip_tokenizer_folder() -> Path:
    """Our CLIP tokenizer in the cache, made on first use."""
    final = cache_dir() / "tokenizers" / "clip-1"
    return make_once(final, lambda folder: write_tokenizer(folder / _KOHYA_NAME)) / _KOHYA_NAME


def load_clip_tokenizer() -> tuple[Callable[[str], list[int]], Callable[[Sequence[int]], str]]:
    """CLIP's tokenizer as two functions: text → tokens without begin and end marks, and tokens → text.

    Of the same class that sd-scripts loads, from our own folder: all SD 1.5 bases share CLIP's vocabulary.
    """
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(clip_tokenizer_folder())

    def encode(text: str) -> list[int]:
        # verbose tells, on stderr, of every text that is longer than the model takes
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    return encode, lambda tokens: str(tokenizer.decode(list(tokens)))


def byte_symbols() -> list[str]:
    """A printable character for each of the 256 bytes, in CLIP's order: printable ones stand for themselves, first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(hidden)]


def _read_merges() -> list[str]:
    found = importlib.util.find_spec("open_clip")
    path = Path(found.origin or "").parent / "bpe_simple_vocab_16e6.txt.gz" if found else None
    if path is None or not path.is_file():
        raise EnvironmentProblem("open_clip's BPE file is not installed; fix: uv sync --locked")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return lines[1 : 1 + _MERGES]


def _cached(own: Path) -> Path:
    """A copy of a model's tokenizer under the name that sd-scripts looks for, kept by its content's hash."""
    files = [own / name for name in _FILES if (own / name).is_file()]

    def copy(folder: Path) -> None:
        (folder / _KOHYA_NAME).mkdir()
        for file in files:
            shutil.copyfile(file, folder / _KOHYA_NAME / file.name)

    return make_once(cache_dir() / "tokenizers" / sha256_json(digest_files(files, own))[:16], copy)
