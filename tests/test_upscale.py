"""Enlarging by a super-resolution model: a tiny one of a real architecture, with made-up weights, in a real file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN

from brushset.errors import EnvironmentProblem, UsageError
from brushset.log import silent
from brushset.paths import RunPaths
from brushset.pipeline import Pipeline
from brushset.prepare.upscale import (
    ModelUpscaler,
    _why_unfit,
    check_upscaler,
    load_upscaler,
    upscaler_digest,
    upscaler_path,
)
from brushset.records import Prepared
from brushset.spec import DatasetSection, StyleSpec, TrainSection
from brushset.stages import audit, preprocess


def make_model(path: Path, *, scale: int = 2, channels: int = 3, seed: int = 0) -> Path:
    """A Compact of width 8: it adds what its convolutions find to the picture enlarged by repeating pixels."""
    torch.manual_seed(seed)
    model = Compact(num_in_ch=channels, num_out_ch=channels, num_feat=8, num_conv=2, upscale=scale)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def picture(width: int = 80, height: int = 60) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def loaded(tmp_path: Path, **kinds: Any) -> ModelUpscaler:
    return load_upscaler(make_model(tmp_path / "tiny.safetensors", **kinds), silent)


@pytest.mark.parametrize(("scale", "size"), [(2, (160, 120)), (4, (160, 120)), (2, (240, 180)), (4, (90, 67))])
def test_an_image_comes_out_at_the_size_asked_for_and_shows_the_same(
    scale: int, size: tuple[int, int], tmp_path: Path
) -> None:
    upscaler = loaded(tmp_path, scale=scale)
    assert upscaler.scale == scale
    result = upscaler(picture(), size)
    assert (result.size, result.mode) == (size, "RGB")
    plain = picture().resize(size, Image.Resampling.BILINEAR)
    assert np.corrcoef(np.asarray(result).ravel(), np.asarray(plain).ravel())[0, 1] > 0.95
    assert not np.array_equal(np.asarray(result), np.asarray(picture().resize(size, Image.Resampling.LANCZOS)))


def test_an_esrgan_is_known_by_its_tensors(tmp_path: Path) -> None:
    model = ESRGAN(num_filters=8, num_blocks=1, scale=4)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "x.safetensors")
    upscaler = load_upscaler(tmp_path / "x.safetensors", silent)
    assert upscaler.name == "x (ESRGAN ×4)"
    assert upscaler(picture(), (200, 150)).size == (200, 150)


def watch(upscaler: ModelUpscaler, limit_px: int = 1 << 20, message: str = "not enough memory: you tried") -> list[int]:
    """Has the model fail above a tile size; returns the list of the sides that it gets to see."""
    model, seen = upscaler.model, []

    def call(tile: torch.Tensor) -> torch.Tensor:
        seen.append(max(tile.shape[2:]))
        if seen[-1] > limit_px:
            raise RuntimeError(message)
        result: torch.Tensor = model(tile)
        return result

    upscaler.model = call
    return seen


def test_tiles_join_without_a_seam_and_bound_what_the_model_sees(tmp_path: Path) -> None:
    upscaler = loaded(tmp_path)
    image = picture(700, 300)
    upscaler.tile_px = 1 << 20
    whole = np.asarray(upscaler(image, (1400, 600)))
    upscaler.tile_px = 128
    seen = watch(upscaler)
    assert np.array_equal(np.asarray(upscaler(image, (1400, 600))), whole)
    assert len(seen) == 6 * 3
    assert max(seen) <= 128 + 2 * 32


def test_out_of_memory_halves_the_tile_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    upscaler = loaded(tmp_path)
    image = picture(200, 150)
    whole = np.asarray(upscaler(image, (400, 300)))
    upscaler.emit = lambda event, /, **fields: said.append(f"{event} {fields['text']}")
    watch(upscaler, limit_px=130)
    assert np.array_equal(np.asarray(upscaler(image, (400, 300))), whole)
    assert upscaler.tile_px == 50
    assert said == [
        f"warning tiny (RealESRGAN Compact ×2): out of memory on {upscaler.device}; goes on in tiles of {side} px"
        for side in (100, 50)
    ]


def test_where_the_smallest_tile_is_too_much_it_ends_with_a_fix(tmp_path: Path) -> None:
    upscaler = loaded(tmp_path)
    watch(upscaler, limit_px=10)
    with pytest.raises(
        EnvironmentProblem, match=r'out of memory .* fix: free memory, or \[dataset\] upscaler = "lanczos"'
    ):
        upscaler(picture(), (160, 120))


def test_another_failure_of_the_model_is_not_taken_for_full_memory(tmp_path: Path) -> None:
    upscaler = loaded(tmp_path)
    watch(upscaler, limit_px=10, message="shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        upscaler(picture(), (160, 120))


def save_pickle(path: Path) -> None:
    torch.save({"body.0.weight": torch.zeros(3)}, path)


def save_unknown(path: Path) -> None:
    save_file({"lora_unet_x.weight": torch.zeros(3)}, path)


def save_denoiser(path: Path) -> None:
    make_model(path, scale=1)


def save_grey(path: Path) -> None:
    make_model(path, channels=1)


def save_misshapen(path: Path) -> None:
    save_file({"body.0.weight": torch.zeros(3), "body.1.weight": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (save_pickle, "a pickle"),
        (lambda path: path.write_text("hello"), "not a safetensors file"),
        (save_unknown, "no architecture that spandrel knows"),
        (save_misshapen, "spandrel cannot load it"),
        (save_denoiser, r"RealESRGAN Compact, made for Restoration, and does not enlarge \(×1\)"),
        (save_grey, "takes 1 channels and gives 1, not RGB"),
    ],
)
def test_what_is_no_upscaler_is_refused_with_what_it_is(
    save: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    save(tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match=message) as caught:
        load_upscaler(tmp_path / "x.safetensors", silent)
    assert str(caught.value).startswith("[dataset] upscaler = ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("purpose", ["Inpainting", "FaceSR"])
def test_models_for_masks_and_faces_are_refused_by_name(purpose: str) -> None:
    model = SimpleNamespace(architecture=SimpleNamespace(name="LaMa"), purpose=purpose, scale=4)
    assert _why_unfit(model) == f"it is LaMa, made for {purpose}, not for whole images"


def test_a_file_that_is_not_there_is_told_before_anything_is_done(tmp_path: Path) -> None:
    for check in (upscaler_digest, lambda path: check_upscaler(DatasetSection(upscaler=str(path)), tmp_path)):
        with pytest.raises(
            UsageError, match=r"\[dataset\] upscaler = .*none\.safetensors: no such file; fix: the path of"
        ):
            check(tmp_path / "none.safetensors")
    check_upscaler(DatasetSection(), tmp_path)


def test_the_path_is_relative_to_the_project(tmp_path: Path) -> None:
    assert upscaler_path(DatasetSection(), tmp_path) is None
    assert upscaler_path(DatasetSection(upscaler="models/x.safetensors"), tmp_path) == tmp_path / "models/x.safetensors"
    assert upscaler_path(DatasetSection(upscaler="/models/x.safetensors"), tmp_path) == Path("/models/x.safetensors")


def prepare(tmp_path: Path, **dataset: Any) -> tuple[Pipeline, list[str]]:
    said: list[str] = []
    spec = StyleSpec(
        name="mine", trigger="t",
        dataset=DatasetSection(images=str(tmp_path / "in"), upscaler=str(tmp_path / "tiny.safetensors"), **dataset),
    )  # fmt: skip
    emit = lambda event, /, **fields: said.append(json.dumps(fields, ensure_ascii=False)) if event == "note" else None  # noqa: E731
    run = Pipeline(spec, RunPaths(tmp_path / "runs" / "mine" / "one"), emit)
    run.execute((audit.STAGE, preprocess.STAGE))
    return run, said


def test_only_images_that_are_too_small_go_through_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "tiny.safetensors")
    (tmp_path / "in").mkdir()
    for side in (300, 512, 900):
        picture(side, side).save(tmp_path / "in" / f"{side}.png")
    calls = []
    real = ModelUpscaler.__call__
    monkeypatch.setattr(
        ModelUpscaler, "__call__", lambda self, image, size: calls.append(image.size) or real(self, image, size)
    )
    run, said = prepare(tmp_path)
    record = Prepared.model_validate(run.done["preprocess"].data)
    assert calls == [(300, 300)]
    assert {image.source: image.upscaled_by for image in record.images} == {
        "300.png": pytest.approx(1.7067, abs=1e-4), "512.png": 1.0, "900.png": 1.0,
    }  # fmt: skip
    assert any("small images are enlarged by tiny (RealESRGAN Compact ×2)" in text for text in said)
    assert any("1 enlarged by tiny, 1.71 times at most" in text for text in said)


def test_another_model_under_the_same_name_does_the_images_anew(tmp_path: Path) -> None:
    make_model(tmp_path / "tiny.safetensors")
    (tmp_path / "in").mkdir()
    picture(300, 300).save(tmp_path / "in" / "a.png")
    first = prepare(tmp_path)[0].done["preprocess"]
    assert prepare(tmp_path)[0].done["preprocess"].started_at == first.started_at
    make_model(tmp_path / "tiny.safetensors", seed=1)
    second = prepare(tmp_path)[0].done["preprocess"]
    assert second.outputs != first.outputs
    assert second.outputs.keys() == first.outputs.keys()


def test_an_upscaler_that_nothing_would_be_enlarged_by_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[dataset\] upscaler has nothing to do with"):
        StyleSpec(
            name="mine", trigger="t", dataset=DatasetSection(upscaler="x.safetensors"),
            train=TrainSection(bucket_no_upscale=True),
        )  # fmt: skip
