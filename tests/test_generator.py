from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_files import lora_state, write_lora, write_trio
from PIL import Image

from brushset.bases.configs import SD15
from brushset.errors import UsageError, VerificationFailed
from brushset.generator import ImageJob, MultiLoRAGenerator, Sampling, create_comparison_grid, mix_label
from brushset.lora.adapter import WEIGHT_NAME, read_adapter
from brushset.lora.compose import METHODS, Options
from brushset.lora.convert import convert_adapter
from brushset.lora.merge.weights import Weight
from brushset.records import BaseFile

SMALL: Any = {"steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_trio(tmp_path_factory.mktemp("loras"))


@pytest.fixture(scope="module")
def generator(tiny_base: BaseFile, loras: dict[str, Path]) -> MultiLoRAGenerator:
    made = MultiLoRAGenerator(tiny_base, device="cpu")
    for name, path in loras.items():
        made.load_lora(path, name)
    return made


def equal(first: Image.Image, second: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))


def test_the_base_is_bit_equal_with_adapters_loaded_used_and_disabled(
    generator: MultiLoRAGenerator, tiny_base: BaseFile
) -> None:
    alone = MultiLoRAGenerator(tiny_base, device="cpu").generate("a cat", seed=1, **SMALL)[0]
    styled = generator.generate("a cat", [("anime", 1.0)], seed=1, **SMALL)[0]
    after = generator.generate("a cat", seed=1, **SMALL)[0]
    assert equal(after, alone)
    assert not equal(styled, alone)


def test_a_seed_gives_the_same_image_in_any_batch(generator: MultiLoRAGenerator) -> None:
    mix = [("anime", 0.6), ("watercolor", 0.4)]
    together = generator.generate("a cat", mix, num_images=3, seed=5, batch_size=3, **SMALL)
    alone = [generator.generate("a cat", mix, seed=seed, batch_size=1, **SMALL)[0] for seed in (5, 6, 7)]
    assert all(equal(first, second) for first, second in zip(together, alone, strict=True))
    assert not equal(together[0], together[1])


def test_prompts_of_one_call_do_not_touch_one_another(generator: MultiLoRAGenerator) -> None:
    mix = [("anime", 1.0)]
    jobs = [ImageJob("a cat", 1, mix), ImageJob("a landscape", 1), ImageJob("a landscape", 1, mix)]
    made = dict(generator.generate_jobs(jobs, Sampling(batch_size=2, **SMALL)))
    assert equal(made[2], generator.generate("a landscape", mix, seed=1, **SMALL)[0])
    assert equal(made[1], generator.generate("a landscape", seed=1, **SMALL)[0])
    assert not equal(made[0], made[2])
    assert not equal(made[1], made[2])


def test_an_image_says_how_it_was_made(generator: MultiLoRAGenerator) -> None:
    image = generator.generate("a cat", [("anime", 0.6)], **SMALL)[0]
    assert image.info["prompt"] == "a cat"
    assert image.info["mix"] == "anime 0.6"
    again = generator.generate("a cat", [("anime", 0.6)], seed=image.info["seed"], **SMALL)[0]
    assert equal(image, again)
    assert (image.mode, image.size) == ("RGB", (64, 64))


def test_options_reach_the_sampler(generator: MultiLoRAGenerator) -> None:
    plain = generator.generate("a cat", seed=1, **SMALL)[0]
    options = {"negative_prompt": "blurry", "guidance": 1.5, "steps": 3, "width": 72, "clip_skip": 2}
    for name, value in options.items():
        other = generator.generate("a cat", seed=1, **{**SMALL, name: value})[0]
        assert not equal(plain, other), name


def test_a_comparison_holds_the_base_and_every_mix_under_its_label(generator: MultiLoRAGenerator) -> None:
    mixes = [[("anime", 0.6)], [("anime", 0.6), ("watercolor", 0.4)]]
    found = generator.generate_comparison("a cat", mixes, seed=1, num_images=2, **SMALL)
    assert list(found) == ["base", "anime 0.6", "anime 0.6 + watercolor 0.4"]
    assert {len(images) for images in found.values()} == {2}
    assert equal(found["base"][1], generator.generate("a cat", seed=2, **SMALL)[0])
    assert "base" not in generator.generate_comparison("a cat", mixes, include_base=False, seed=1, **SMALL)


def test_an_adapter_that_is_not_loaded_names_those_that_are(generator: MultiLoRAGenerator) -> None:
    with pytest.raises(UsageError, match='"cartoon" is not loaded; loaded: anime, unet-only, watercolor'):
        generator.generate("a cat", [("cartoon", 1.0)], **SMALL)
    with pytest.raises(UsageError, match="not loaded"):
        generator.generate_comparison("a cat", [[("anime", 1.0)], [("cartoon", 1.0)]], **SMALL)
    with pytest.raises(UsageError, match="twice"):
        generator.generate("a cat", [("anime", 1.0), ("anime", 0.5)], **SMALL)


def test_kohya_and_diffusers_form_give_the_same_image(
    tiny_base: BaseFile, loras: dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "adapter" / WEIGHT_NAME
    conversion = convert_adapter(read_adapter(loras["anime"]), "diffusers", target, verify=False)
    made = MultiLoRAGenerator(tiny_base, device="cpu")
    images = []
    for path in (loras["anime"], conversion.path, conversion.path.parent):
        made.load_lora(path, "style")
        images.append(made.generate("a cat", [("style", 0.8)], seed=1, **SMALL)[0])
    assert equal(images[1], images[2])
    assert equal(images[0], images[1])


def test_an_adapter_of_the_unet_alone_works_alone(tiny_base: BaseFile, loras: dict[str, Path]) -> None:
    made = MultiLoRAGenerator(tiny_base, device="cpu")
    plain = made.generate("a cat", seed=1, **SMALL)[0]
    made.load_lora(loras["unet-only"], "style")
    assert equal(plain, made.generate("a cat", seed=1, **SMALL)[0])
    assert not equal(plain, made.generate("a cat", [("style", 1.0)], seed=1, **SMALL)[0])
    assert equal(plain, made.generate("a cat", seed=1, **SMALL)[0])


def test_loading_under_a_known_name_replaces_the_adapter(tiny_base: BaseFile, loras: dict[str, Path]) -> None:
    made = MultiLoRAGenerator(tiny_base, device="cpu")
    made.load_lora(loras["anime"], "style")
    made.load_lora(loras["watercolor"], "style")
    replaced = made.generate("a cat", [("style", 1.0)], seed=1, **SMALL)[0]
    fresh = MultiLoRAGenerator(tiny_base, device="cpu")
    fresh.load_lora(loras["watercolor"], "style")
    assert equal(replaced, fresh.generate("a cat", [("style", 1.0)], seed=1, **SMALL)[0])
    assert made.loras == ["style"]


def test_a_file_that_does_not_fit_is_refused_and_leaves_no_trace(generator: MultiLoRAGenerator, tmp_path: Path) -> None:
    before = generator.generate("a cat", [("anime", 1.0)], seed=1, **SMALL)[0]
    full = write_lora(tmp_path / "full.safetensors", architecture=SD15, dim=1)
    with pytest.raises(UsageError, match="does not fit base model random:tiny"):
        generator.load_lora(full, "full")
    with pytest.raises(UsageError, match="no such file"):
        generator.load_lora(tmp_path / "nothing.safetensors", "nothing")
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(UsageError, match="a pickle"):
        generator.load_lora(tmp_path / "x.pt", "x")
    with pytest.raises(UsageError, match="dot"):
        generator.load_lora(full, "v1.5")
    assert generator.loras == ["anime", "unet-only", "watercolor"]
    assert equal(before, generator.generate("a cat", [("anime", 1.0)], seed=1, **SMALL)[0])


def test_leftover_keys_are_refused(generator: MultiLoRAGenerator, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({**lora_state(), "lora_unet_nothing.alpha": torch.tensor(1.0)}, tmp_path / "x.safetensors")
    with pytest.raises(VerificationFailed, match="lora_unet_nothing"):
        generator.load_lora(tmp_path / "x.safetensors", "x")


@pytest.mark.parametrize("options", [{"width": 100}, {"height": 32}, {"steps": 0}, {"batch_size": 0}])
def test_impossible_sampling_is_refused_before_it_starts(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Sampling(**options)


def test_nan_is_an_error_and_no_black_image(tiny_base: BaseFile) -> None:
    made = MultiLoRAGenerator(tiny_base, device="cpu")
    made._engine.components.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(VerificationFailed, match="NaN"):
        made.generate("a cat", **SMALL)


def test_generating_prints_nothing(
    tiny_base: BaseFile, loras: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    made = MultiLoRAGenerator(tiny_base, device="cpu")
    for name, path in loras.items():
        made.load_lora(path, name)
    made.generate("a cat", [("unet-only", 1.0), ("anime", 1.0)], **SMALL)
    assert capfd.readouterr() == ("", "")


def test_progress_is_an_event_per_image(tiny_base: BaseFile) -> None:
    events: list[tuple[str, object]] = []
    made = MultiLoRAGenerator(
        tiny_base, device="cpu", emit=lambda event, **fields: events.append((event, fields["done"]))
    )
    made.generate("a cat", num_images=2, seed=1, **SMALL)
    assert events == [("progress", 0), ("progress", 1), ("progress", 2)]


def test_the_calls_of_the_readme_run_as_they_stand(
    tiny_base: BaseFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the default base, which here is the narrow model under its id in the hub's cache; steps and size apart."""
    from brushset.spec import DEFAULT_BASE

    repository = tmp_path / "hub" / f"models--{DEFAULT_BASE.replace('/', '--')}"
    shutil.copytree(tiny_base.path, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    anime = read_adapter(write_lora(tmp_path / "anime.safetensors", seed=1))
    convert_adapter(anime, "diffusers", Path("outputs/anime_lora/final") / WEIGHT_NAME, verify=False)
    write_lora(Path("outputs/watercolor_lora/final/watercolor.safetensors"), seed=2)
    small = partial(Sampling, steps=2, width=64, height=64)
    monkeypatch.setattr("brushset.generator.Sampling", small)

    generator = MultiLoRAGenerator()
    generator.load_lora("outputs/anime_lora/final", "anime")
    generator.load_lora("outputs/watercolor_lora/final", "watercolor")
    images = generator.generate(
        prompt="anistyle, a girl with blue hair", lora_configs=[("anime", 1.0)], num_images=4, seed=42
    )
    mixed = generator.generate(
        prompt="anistyle wcstyle, a portrait in a garden", lora_configs=[("anime", 0.6), ("watercolor", 0.4)]
    )
    comparison = generator.generate_comparison(
        prompt="a portrait in a garden",
        lora_configs_list=[[("anime", 1.0)], [("watercolor", 1.0)], [("anime", 0.7), ("watercolor", 0.3)]],
        include_base=True,
    )
    create_comparison_grid(comparison, save_path="comparison.png")

    assert [image.info["seed"] for image in images] == [42, 43, 44, 45]
    assert len({image.tobytes() for image in images}) == 4
    assert len(mixed) == 1
    assert list(comparison) == ["base", "anime 1", "watercolor 1", "anime 0.7 + watercolor 0.3"]
    assert len({images[0].tobytes() for images in comparison.values()}) == 4
    with Image.open(tmp_path / "comparison.png") as grid:
        assert grid.width > 4 * 64


def test_weights_are_numbers_text_or_by_part(generator: MultiLoRAGenerator) -> None:
    ways: list[float | str | Weight] = [0.6, "0.6", Weight(0.6), "0.6,unet=0.6", "0.6@0-1"]
    images = [generator.generate("a cat", [("anime", weight)], seed=1, **SMALL)[0] for weight in ways]
    assert all(equal(image, images[0]) for image in images)
    other = generator.generate("a cat", [("anime", "0.6,text=0,up=0.1")], seed=1, **SMALL)[0]
    assert not equal(other, images[0])
    with pytest.raises(UsageError, match=r"anime:0.6,side=1: 'side=1' is no PART=WEIGHT"):
        generator.generate("a cat", [("anime", "0.6,side=1")], **SMALL)


def test_methods_make_different_images_of_one_mix(generator: MultiLoRAGenerator) -> None:
    mix = [("anime", 0.6), ("watercolor", 0.4)]
    options: Any = {**SMALL, "steps": 6, "seed": 1}
    made = [generator.generate("a cat", mix, method=name, **options)[0] for name in (None, *METHODS)]
    assert equal(made[0], made[1])
    assert len({image.tobytes() for image in made[1:]}) == len(METHODS) - 1  # a schedule of nothing is the weighted sum
    turns = generator.generate("a cat", mix, method="switch", method_options=Options(every=2), **options)[0]
    assert turns.tobytes() not in {image.tobytes() for image in made}
    with pytest.raises(UsageError, match="no such method"):
        generator.generate("a cat", mix, method="blend", **SMALL)


def test_the_total_strength_of_a_mix_is_said_once(tiny_base: BaseFile, loras: dict[str, Path]) -> None:
    told: list[str] = []

    def emit(event: str, /, **fields: object) -> None:
        if event == "note":
            told.append(str(fields["text"]))

    made = MultiLoRAGenerator(tiny_base, device="cpu", emit=emit)
    for name, path in loras.items():
        made.load_lora(path, name)
    made.generate("a cat", [("anime", 1.0)], **SMALL)
    assert told == []
    for _ in range(2):
        made.generate("a cat", [("anime", 0.6), ("watercolor", 0.4)], num_images=2, **SMALL)
        made.generate("a cat", [("anime", 0.6), ("watercolor", 0.4)], method="composite", **SMALL)
    assert [line.partition(";")[0] for line in told] == [
        "anime 0.6 + watercolor 0.4: total strength 1, the mean over the steps of the weights that act",
        "anime 0.6 + watercolor 0.4 (composite): total strength 0.5, the mean over the steps of the weights that act",
    ]
    assert "of what the strongest does alone at 1" in told[0]


def test_an_adapter_can_be_let_go(tiny_base: BaseFile, loras: dict[str, Path]) -> None:
    made = MultiLoRAGenerator(tiny_base, device="cpu")
    made.load_lora(loras["anime"], "anime")
    plain = made.generate("a cat", seed=1, **SMALL)[0]
    made.unload_lora("anime")
    assert made.loras == []
    assert equal(made.generate("a cat", seed=1, **SMALL)[0], plain)
    with pytest.raises(UsageError, match='"anime" is not loaded; loaded: none'):
        made.unload_lora("anime")


def test_mixes_are_labelled_as_in_the_report() -> None:
    assert mix_label([]) == "base"
    assert mix_label([("cartoon", 0.5), ("anime", 1.0)]) == "cartoon 0.5 + anime 1"


def test_a_grid_holds_every_image_where_its_labels_say(tmp_path: Path) -> None:
    colours = {"base": ["#ff0000", "#00ff00"], "anime 0.6 + watercolor 0.4": ["#0000ff", "#ffff00"]}
    comparison = {label: [Image.new("RGB", (200, 160), colour) for colour in pair] for label, pair in colours.items()}
    path = tmp_path / "below" / "grid.png"
    grid = create_comparison_grid(comparison, path, row_labels=["a cat", "a street in an old town"], title="seed 1")
    pixels = np.asarray(grid)
    places = {}
    for pair in colours.values():
        for colour in pair:
            rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
            rows, columns = np.nonzero((pixels == rgb).all(axis=2))
            assert len(rows) == 200 * 160
            places[colour] = (rows.min(), columns.min())
    assert places["#ff0000"][1] == places["#00ff00"][1] < places["#0000ff"][1] == places["#ffff00"][1]
    assert places["#ff0000"][0] == places["#0000ff"][0] < places["#00ff00"][0] == places["#ffff00"][0]
    above, left = pixels[: places["#ff0000"][0]], pixels[:, : places["#ff0000"][1]]
    assert (above < 100).any()
    assert (left < 100).any()
    with Image.open(path) as saved:
        assert np.array_equal(np.asarray(saved), pixels)


def test_a_long_label_is_wrapped_inside_its_column() -> None:
    label = "a-style-with-a-very-long-name-of-forty-eight-letters 0.35 + another-style 0.65"
    narrow = create_comparison_grid({"x": Image.new("RGB", (128, 128)), label: Image.new("RGB", (128, 128))})
    short = create_comparison_grid({"x": Image.new("RGB", (128, 128)), "y": Image.new("RGB", (128, 128))})
    assert narrow.width == short.width
    assert narrow.height > short.height


def test_small_images_are_shown_large_enough_for_their_labels() -> None:
    assert create_comparison_grid({"anime 0.6": Image.new("RGB", (64, 64))}).width >= 128


def test_an_empty_comparison_is_refused() -> None:
    with pytest.raises(UsageError, match="no image"):
        create_comparison_grid({})


def test_the_package_offers_it_without_importing_torch() -> None:
    code = (
        "import sys, brushset\nassert 'torch' not in sys.modules\n"
        "from brushset import MultiLoRAGenerator, create_comparison_grid\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
