"""The captions that sd-scripts reads from a run's own dataset TOML, through its own loader, are the run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from brushset.bases.tokenizer import clip_tokenizer_folder
from brushset.captions.effective import CaptionRules, effective_caption
from brushset.kohya.effective import ask_sd_scripts
from brushset.kohya.source import Source
from brushset.log import silent
from brushset.paths import RunPaths
from brushset.pipeline import Pipeline
from brushset.records import Captions
from brushset.spec import BaseSection, CaptionSection, DatasetSection, StyleSpec, TrainSection
from brushset.stages import audit, caption, configure, preprocess

STAGES = (audit.STAGE, preprocess.STAGE, caption.STAGE, configure.STAGE)
SIDECARS = {
    "plain": "a cat on a mat, sleeping, red",
    "spaces": "  a   dog ,, running ,  blue ,",
    "lines": "a house\nby the sea\n\nat night",
    "trigger": "a boat, my style, at sea, storm",
    "unicode": "caf\u00e9, \U0001f3a8 easel, \u732b",
    "braces": "a {red|blue} cat, {{kept}}, __color__",
    "quotes": 'it\'s a "quoted" dog, 100%, a\\b, [x](y)',
    "long": ", ".join(f"thing number {index}" for index in range(40)),
    "semicolons": "a; b; c, d",
    "empty": " \n",
}


def make_run(root: Path, **train: Any) -> tuple[RunPaths, StyleSpec, Captions]:
    """A run over ten images with odd sidecars, configured for kohya."""
    folder = root / "in"
    folder.mkdir()
    for index, (name, text) in enumerate(SIDECARS.items()):
        Image.effect_noise((256, 256 + 64 * (index % 3)), 40 + 9 * index).convert("RGB").save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    spec = StyleSpec(
        name="mine", trigger="my style", base=BaseSection(model="random:sd15"),
        dataset=DatasetSection(images=str(folder), resolution=256, min_images=2, holdout=0.0),
        caption=CaptionSection(captioner="filename"),
        train=TrainSection(engine="kohya", mixed_precision="no", repeats=1, **train),
    )  # fmt: skip
    run = RunPaths(root / "runs" / "mine" / "one")
    pipeline = Pipeline(spec, run, silent)
    pipeline.execute(STAGES)
    return run, spec, Captions.model_validate(pipeline.done["caption"].data)


def asked(source: Source, run: RunPaths) -> dict[str, Mapping[str, Any]]:
    """Image → what sd-scripts says of it."""
    answer = ask_sd_scripts(source, run, ("--tokenizer_cache_dir", str(clip_tokenizer_folder().parent)))
    return {Path(image["path"]).name: image for dataset in answer["train"] for image in dataset["images"]}


@pytest.mark.vendor
@pytest.mark.slow
def test_sd_scripts_reads_and_trains_the_very_captions(sd_scripts: Source, tmp_path: Path):
    run, spec, captions = make_run(tmp_path, caption_dropout_rate=0.5)
    theirs, rules = asked(sd_scripts, run), CaptionRules.of(spec)
    assert len(captions.captions) == len(SIDECARS)
    assert {name: image["read"] for name, image in theirs.items()} == {
        item.image: item.text for item in captions.captions
    }
    for item in captions.captions:
        assert theirs[item.image]["caption"] == effective_caption(item.text, rules)
        assert theirs[item.image]["tokens"] == item.tokens


@pytest.mark.vendor
@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"secondary_separator": ";", "caption_suffix": "best", "keep_tokens_separator": "sea", "enable_wildcard": True},
    ],
    ids=lambda extra: next(iter(extra), "plain"),
)
def test_shuffled_captions_keep_the_trigger_in_front_and_all_parts(
    extra: dict[str, Any], sd_scripts: Source, tmp_path: Path
):
    run, spec, captions = make_run(tmp_path, shuffle_caption=True, extra=extra)
    theirs, rules = asked(sd_scripts, run), CaptionRules.of(spec)
    assert len(theirs) == len(captions.captions) == len(SIDECARS)
    shuffled = 0
    for item in captions.captions:
        sample, ours = theirs[item.image]["caption"], effective_caption(item.text, rules)
        assert sample.startswith("my style")
        if "{" not in item.text:
            assert sorted(sample.split(", ")) == sorted(ours.split(", "))
            shuffled += sample != ours
    assert shuffled
