"""inference, as a user calls it: images, what they say of themselves, grids, replay, and every refusal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from a1111_parser import LORA_TAG, lora_hashes, parse
from lora_files import lora_state, save, write_lora
from PIL import Image
from trained_styles import make_style

import orchestrate
from brushset.cli.guard import guarded
from brushset.cli.options import spread_values
from brushset.files import sha256_file
from brushset.lora.metadata import model_hash
from brushset.records import BaseFile


@pytest.fixture(scope="module")
def runs(tiny_base: BaseFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make_style(folder, "anime", tiny_base, trigger="anistyle", epochs=3, clip_skip=2)
    make_style(folder, "watercolor", tiny_base, trigger="wcstyle")
    make_style(folder, "cartoon", tiny_base, trigger="cartoonstyle", base_sha256="f" * 64)
    (folder / "empty" / "20250101-run").mkdir(parents=True)
    (folder / "empty" / "20250101-run" / "run.json").write_text("{}")
    return folder


@pytest.fixture
def answer(runs: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def ask(*argv: object) -> tuple[int, str, str]:
        words = spread_values([str(word) for word in argv], ("--prompts", "--loras", "--weights", "--replay"))
        code = guarded(orchestrate.app, ["inference", *words, "--runs-dir", str(runs)])
        out, err = capsys.readouterr()
        return code, out, err

    return ask


def pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.png") if not file.name.startswith("grid"))


def texts(file: Path) -> tuple[dict[str, str], dict[str, Any]]:
    with Image.open(file) as image:
        return parse(image.text["parameters"]), json.loads(image.text["brushset"])  # type: ignore[attr-defined]


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def test_the_issues_command_runs(answer: Any, tmp_path: Path, runs: Path) -> None:
    code, out, err = answer(
        "--prompts", "a portrait of a girl", "a landscape", "--loras", "anime:0.6", "watercolor:0.4",
        "--method", "composite", "--num-images", 2, "--seed", 42, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    files = pictures(tmp_path / "out")
    assert [file.name for file in files] == [
        f"0000{number}_anime-0.6+watercolor-0.4_{seed}.png" for number, seed in enumerate((42, 43, 42, 43))
    ]
    assert "4 images in" in out
    assert "a second" in out
    assert 'anime: its trigger "anistyle" is put in front of 2 of 2 prompts' in err
    assert "the images are noise, and prove nothing" in err
    told, manifest = texts(files[0])
    assert told["Prompt"] == "anistyle, wcstyle, a portrait of a girl <lora:anime:0.6> <lora:watercolor:0.4>"
    assert (told["Steps"], told["Seed"], told["Size"], told["Clip skip"]) == ("2", "42", "64x64", "2")
    assert (told["Sampler"], told["Schedule type"], told["LoRA method"]) == ("DPM++ 2M", "Karras", "composite")
    assert told["Version"].startswith("brushset 0.")  # a bare number is taken for one of A1111's own versions
    anime = runs / "anime/20250101-000000-0000/weights/anime.safetensors"
    assert lora_hashes(told)["anime"] == model_hash(anime)[:12]
    assert {name for name, _ in LORA_TAG.findall(told["Prompt"])} == {"anime", "watercolor"}
    assert manifest["adapters"][0]["sha256"] == sha256_file(anime)
    listed = json.loads((tmp_path / "out/images.json").read_text())
    assert [row["file"] for row in listed["images"]] == [file.name for file in files]
    assert listed["base_random"] is True


def test_an_image_holds_no_path_of_this_machine(answer: Any, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "secret place" / "mine.safetensors", seed=5)
    assert answer("--prompts", "a", "--loras", f"{file}:0.5", "--base-model", "random:tiny", "--size", "64", "--steps", 1, "--out", tmp_path / "o")[0] == 0  # fmt: skip
    (made,) = pictures(tmp_path / "o")
    assert b"secret place" not in made.read_bytes()
    assert texts(made)[0]["Prompt"] == "a <lora:mine:0.5>"
    assert "secret place" in (tmp_path / "o/images.json").read_text()


def test_every_image_is_made_again_from_what_it_says(answer: Any, tmp_path: Path) -> None:
    first = tmp_path / "first"
    mixes: tuple[tuple[str, ...], ...] = (
        ("--loras", "anime@2:0.8", "watercolor:0.5,text=0.1", "--method", "switch", "--every", "1"),
        ("--loras", "anime:0.9@0-0.5", "--scheduler", "euler a", "--size", "72x64", "--guidance", "3.5"),
        ("--loras", "anime:1", "watercolor:1", "--normalize", "--negative", "ugly", "--clip-skip", "1"),
    )
    for mix in mixes:
        code, _, err = answer("--prompts", "ein Mädchen, 日本", *mix, "--seed", 5, "--out", first)
        assert code == 0, err
    files = pictures(first)
    assert len(files) == 3
    code, out, err = answer("--replay", *files, "--out", tmp_path / "again")
    assert code == 0, err
    assert out.count("the same, every pixel") == 3
    assert len(pictures(tmp_path / "again")) == 3
    original, again = texts(files[0])[1], texts(pictures(tmp_path / "again")[0])[1]
    adapters = [[(each["sha256"], each["weight"]) for each in told.pop("adapters")] for told in (original, again)]
    assert adapters[0] == adapters[1]
    assert again == original


def test_replay_tells_an_image_that_was_changed(answer: Any, tmp_path: Path) -> None:
    assert answer("--prompts", "a", "--loras", "anime", "--out", tmp_path)[0] == 0
    (file,) = pictures(tmp_path)
    from PIL.PngImagePlugin import PngInfo

    with Image.open(file) as image:
        text, changed = PngInfo(), image.convert("RGB")
        text.add_text("brushset", image.text["brushset"])  # type: ignore[attr-defined]
    changed.putpixel((0, 0), tuple(255 - value for value in changed.getpixel((0, 0))))  # type: ignore[arg-type, union-attr]
    changed.save(file, pnginfo=text)
    code, out, _ = answer("--replay", file, "--out", tmp_path / "again")
    assert code == 0
    assert "differs: in 0.0% of the pixels, by " in out


def test_a_grid_has_the_base_first_and_triggers_only_where_they_call(answer: Any, tmp_path: Path) -> None:
    code, out, err = answer(
        "--prompts", "a cat", "AniStyle lake", "--loras", "anime", "--grid", "--weights", "0.4", "1", "--out", tmp_path
    )
    assert code == 0, err
    prompts = [texts(file)[1]["prompt"] for file in pictures(tmp_path)]
    assert prompts == ["a cat", "anistyle, a cat", "anistyle, a cat", "AniStyle lake", "AniStyle lake", "AniStyle lake"]
    assert "put in front of 1 of 2 prompts" in err
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 3 * 128
        assert grid.height > 2 * 128
    assert "6 images in" in out
    assert len({file.name.split("_")[1] for file in pictures(tmp_path)}) == 3


def test_a_grid_of_two_styles_takes_their_pairs(answer: Any, tmp_path: Path) -> None:
    assert answer("--prompts", "a", "--loras", "anime", "watercolor", "--grid", "--out", tmp_path)[0] == 0
    assert [file.name.split("_")[1] for file in pictures(tmp_path)] == [
        "base", "anime-0.3+watercolor-0.7", "anime-0.5+watercolor-0.5", "anime-0.7+watercolor-0.3",
    ]  # fmt: skip


def test_epochs_are_compared_side_by_side(answer: Any, tmp_path: Path) -> None:
    argv = ("--prompts", "a", "--loras", "anime@1", "anime@2", "anime", "--each", "--grid", "--weights", "0.8")
    code, _, err = answer(*argv, "--out", tmp_path)
    assert code == 0, err
    files = pictures(tmp_path)
    assert [file.name.split("_")[1] for file in files] == ["base", "anime@1-0.8", "anime@2-0.8", "anime-0.8"]
    assert len({pixels(file).tobytes() for file in files}) == 4


def test_images_do_not_depend_on_what_else_is_drawn(answer: Any, tmp_path: Path) -> None:
    argv = ("--prompts", "a", "--seed", "1")
    assert answer(*argv, "--loras", "anime", "--grid", "--batch-size", "8", "--out", tmp_path / "grid")[0] == 0
    assert answer(*argv, "--loras", "anime:0.8", "--out", tmp_path / "one")[0] == 0
    in_grid = next(file for file in pictures(tmp_path / "grid") if "anime-0.8" in file.name)
    assert np.array_equal(pixels(in_grid), pixels(pictures(tmp_path / "one")[0]))


def test_nothing_is_written_over(answer: Any, tmp_path: Path) -> None:
    tmp_path.joinpath("mine.txt").write_text("mine")
    tmp_path.joinpath("images.json").write_text("not ours")
    for _ in range(2):
        assert answer("--prompts", "a/../../x: * ? \\ \n |", "--loras", "anime", "--grid", "--out", tmp_path)[0] == 0
        before = {file: file.read_bytes() for file in tmp_path.glob("*.png")}
    assert len(pictures(tmp_path)) == 10
    assert {file.name for file in tmp_path.glob("grid*")} == {"grid.png", "grid_2.png"}
    assert all(file.read_bytes() == data for file, data in before.items())
    assert tmp_path.joinpath("mine.txt").read_text() == "mine"
    assert not list(tmp_path.parent.parent.glob("x*"))
    assert len(json.loads((tmp_path / "images.json").read_text())["images"]) == 10


def test_without_loras_each_style_that_is_asked_for_is_drawn_alone(answer: Any, tmp_path: Path) -> None:
    code, _, err = answer("--prompts", "a", "--style", "anime", "--style", "watercolor", "--out", tmp_path)
    assert code == 0, err
    assert [file.name for file in pictures(tmp_path)] == ["00000_anime-0.8_42.png", "00001_watercolor-0.8_42.png"]
    assert "clip skip 2; trained with another: watercolor 1" in err


def test_another_base_than_trained_on_is_said(answer: Any, tmp_path: Path) -> None:
    code, _, err = answer("--prompts", "a", "--loras", "cartoon", "--base-model", "random:tiny", "--out", tmp_path)
    assert code == 0, err
    assert "cartoon: trained on another base model than random:tiny" in err


def test_json_is_all_there_is_on_stdout(answer: Any, tmp_path: Path) -> None:
    code, out, _ = answer("--prompts", "a", "--loras", "anime", "--json", "--out", tmp_path)
    assert code == 0
    events = [json.loads(line) for line in out.splitlines()]
    (image,) = [event for event in events if event["event"] == "image"]
    assert (tmp_path / image["file"]).is_file()
    assert {"progress", "note", "warning"} <= {event["event"] for event in events}


def test_a_seed_of_minus_one_is_drawn_and_said(answer: Any, tmp_path: Path) -> None:
    code, _, err = answer("--prompts", "a", "--loras", "anime", "--seed", "-1", "--out", tmp_path)
    assert code == 0
    assert f"seed {texts(pictures(tmp_path)[0])[1]['seed']}" in err


def test_compiling_without_a_gpu_is_left_out_and_said(
    answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = answer("--prompts", "a", "--loras", "anime", "--compile", "--out", tmp_path)
    assert code == 0, err
    assert "--compile: there is no GPU here" in err


def test_an_image_of_one_colour_is_not_kept(answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from brushset.generator import MultiLoRAGenerator

    true = MultiLoRAGenerator.generate_jobs

    def first_is_black(self: Any, jobs: Any, sampling: Any) -> Any:
        for index, image in true(self, jobs, sampling):
            yield index, Image.new("RGB", image.size) if index == 0 else image

    monkeypatch.setattr(MultiLoRAGenerator, "generate_jobs", first_is_black)
    code, _, err = answer("--prompts", "a", "--loras", "anime", "--num-images", "2", "--out", tmp_path)
    assert code == 6
    assert (
        'error: "anistyle, a", seed 42, anime 1: all pixels are of one colour; not saved; fix: --precision fp32' in err
    )
    assert [file.name for file in pictures(tmp_path)] == ["00001_anime-1_43.png"]


def test_nan_is_told_with_what_to_do_on_the_command_line(
    answer: Any, tmp_path: Path, runs: Path, tiny_base: BaseFile
) -> None:
    file = save({key: 1e4 * value for key, value in lora_state().items()}, tmp_path / "wild.safetensors")
    code, _, err = answer("--prompts", "a", "--loras", "watercolor", f"{file}:10", "--out", tmp_path / "o")
    assert code == 6
    assert "NaN" in err
    assert "--precision fp32" in err


def refusals(tmp_path: Path, runs: Path) -> dict[str, tuple[tuple[str, ...], str]]:
    """Case → (words behind `inference`, what is said)."""
    import torch

    one = {"down.weight": torch.zeros(4, 2048), "up.weight": torch.zeros(640, 4)}
    sdxl = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_"
    save({sdxl + key: value for key, value in one.items()}, tmp_path / "sdxl.safetensors")
    sd2 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_"
    save(
        {sd2 + "down.weight": torch.zeros(4, 1024), sd2 + "up.weight": torch.zeros(320, 4)},
        tmp_path / "sd2.safetensors",
    )
    flux = "transformer.single_transformer_blocks.0.attn.to_k.lora_"
    save(
        {flux + "A.weight": torch.zeros(4, 3072), flux + "B.weight": torch.zeros(3072, 4)},
        tmp_path / "flux.safetensors",
    )
    save({"lora_unet_mid.hada_w1_a": torch.zeros(4, 4)}, tmp_path / "loha.safetensors")
    whole = write_lora(tmp_path / "whole.safetensors", seed=3)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "gone.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "taken").write_text("a file")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    anime = runs / "anime/20250101-000000-0000/weights/anime.safetensors"
    a, mixed = ("--prompts", "a"), ("--prompts", "a", "--loras", "anime", "watercolor")
    return {
        "no prompt": (("--loras", "anime"), "no prompt; fix: --prompts"),
        "an empty prompt": (("--prompts", " ", "--loras", "anime"), "--prompts: prompt 1 is empty"),
        "A1111's tag": (("--prompts", "a <lora:x:0.5>", "--loras", "anime"), "fix: --loras x:0.5"),
        "unknown style": ((*a, "--loras", "anim"), "anim: neither a file nor a style with a run in"),
        "untrained style": ((*a, "--loras", "empty"), "nothing is trained yet; fix: orchestrate.py --style empty"),
        "different bases": ((*a, "--loras", "anime", "cartoon"), "trained on different base models (anime"),
        "SDXL": ((*a, "--loras", f"{tmp_path}/sdxl.safetensors"), "a LoRA of SDXL"),
        "SD 2": ((*a, "--loras", f"{tmp_path}/sd2.safetensors"), "a LoRA of SD 2"),
        "Flux": ((*a, "--loras", f"{tmp_path}/flux.safetensors"), "a LoRA of Flux"),
        "LoHa": ((*a, "--loras", f"{tmp_path}/loha.safetensors"), "a LoHa"),
        "a pickle": ((*a, "--loras", f"{tmp_path}/gone.pt"), "a pickle"),
        "a cut file": ((*a, "--loras", f"{tmp_path}/cut.safetensors:0.5"), "cut short"),
        "no such file": ((*a, "--loras", f"{tmp_path}/none.safetensors"), "none.safetensors: no such file"),
        "no such epoch": ((*a, "--loras", "anime@9"), "epoch 9 is not kept in"),
        "no epoch": ((*a, "--loras", "anime@0-0.5"), "a part of the steps goes after the weight, as anime:0.8@0-0.5"),
        "twice": ((*a, "--loras", "anime:0.6", "anime:0.4"), "anime: stands twice; fix: name it once"),
        "twice by path": ((*a, "--loras", "anime", f"{anime}:0.4"), "stands twice (it is anime)"),
        "a weight that is none": ((*a, "--loras", "anime:much"), "anime:much: weight 'much': a number is expected"),
        "a part that is none": ((*a, "--loras", "anime:0.6,txt=1"), "parts are unet, text"),
        "a name that is none": ((*a, "--loras", ":0.6"), "no name before the colon"),
        "a size": ((*a, "--loras", "anime", "--size", "500x512"), "width = 500: must be a multiple of 8"),
        "a size that is none": ((*a, "--loras", "anime", "--size", "large"), "WIDTHxHEIGHT is expected, such as 512x768"),
        "two sizes": ((*a, "--loras", "anime", "--size", "64", "--width", "64"), "say the size once"),
        "a scheduler": ((*a, "--loras", "anime", "--scheduler", "ddimm"), "there are: DPM++ 2M Karras, DPM++ 2M,"),
        "a method": ((*mixed, "--method", "merge"), "there are: weighted, schedule, switch, composite"),
        "switch alone": ((*a, "--loras", "anime", "--method", "switch"), "is for two adapters and more, and there is one (anime)"),
        "switch without turns": ((*mixed, "--method", "switch"), "never come to watercolor"),
        "every for another": ((*mixed, "--every", "2"), "does not take every; it is for switch"),
        "weights without a grid": ((*mixed, "--weights", "0.4"), "--weights: is for --grid"),
        "weights too few": ((*mixed, "--grid", "--weights", "0.4"), "one weight for each of anime/watercolor, such as 0.5/0.5"),
        "weights that are none": ((*a, "--loras", "anime", "--grid", "--weights", "x"), "--weights x: numbers are expected"),
        "no images": ((*a, "--loras", "anime", "--num-images", "0"), "--num-images 0: must be at least 1"),
        "no steps": ((*a, "--loras", "anime", "--steps", "0"), "steps = 0: must be at least 1"),
        "clip skip": ((*a, "--loras", "anime", "--clip-skip", "0"), "clip_skip = 0: must be at least 1"),
        "a seed": ((*a, "--loras", "anime", "--seed", "-7"), "or -1 for any"),
        "a precision": ((*a, "--loras", "anime", "--precision", "fp8"), "must be one of fp32, fp16, bf16"),
        "a file for a folder": ((*a, "--loras", "anime", "--out", f"{tmp_path}/taken"), "is a file, or below one"),
        "a base that is none": ((*a, "--loras", "anime", "--base-model", "/no/such.safetensors"), "no such file or folder"),
        "no prompts file": (("--loras", "anime", "--prompts-file", f"{tmp_path}/none.txt"), "none.txt: no such file"),
        "replay of another's": (("--replay", f"{tmp_path}/plain.png"), "does not say how it was made"),
        "replay of nothing": (("--replay", f"{tmp_path}/none.png"), "none.png: no such file"),
        "replay of no image": (("--replay", f"{tmp_path}/taken"), "cannot be read as a PNG"),
    }  # fmt: skip


def test_every_refusal_is_a_line_that_says_what_to_do(answer: Any, tmp_path: Path, runs: Path) -> None:
    table = []
    for case, (words, said) in refusals(tmp_path, runs).items():
        extra = () if "--out" in words or "--replay" in words else ("--out", str(tmp_path / "none"))
        code, out, err = answer(*words, *extra)
        table.append(f"{case:24} {code}  {' '.join(words)}\n    {err.strip()}")
        assert code == 2, (case, err)
        assert said in err, (case, err)
        assert len(err.splitlines()) == 1, (case, err)
        assert err.startswith("error: ")
        assert not out
    assert not (tmp_path / "none").exists()
    if path := os.environ.get("REFUSALS"):
        Path(path).write_text("\n".join(table))


def test_broken_files_are_refused_before_a_base_is_asked_for(answer: Any, tmp_path: Path) -> None:
    import torch

    living = lora_state()
    dead = {key: torch.zeros_like(value) if "lora_up" in key else value for key, value in living.items()}
    nan = {key: torch.full_like(value, torch.nan) if "lora_up" in key else value for key, value in living.items()}
    for name, state, said in (("dead", dead, "adds nothing: up or down is zero"), ("nan", nan, "hold NaN or infinity")):
        file = save(state, tmp_path / f"{name}.safetensors")
        words = ("--prompts", "a", "--loras", f"{file}:1", "--base-model", "/no/base.safetensors")
        code, _, err = answer(*words, "--out", tmp_path / "none")
        assert code == 6, err
        assert said in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_what_is_wrong_is_told_at_once(answer: Any, tmp_path: Path) -> None:
    code, _, err = answer(
        "--prompts", "a", "--loras", "anim", f"{tmp_path}/x.safetensors", "anime@9", "--out", tmp_path
    )
    assert code == 2
    assert len(err.splitlines()) == 3


def test_nothing_trained_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(orchestrate.app, ["inference", "--prompts", "a", "--runs-dir", str(tmp_path)]) == 2
    assert "nothing is trained yet; fix: orchestrate.py --style NAME, or --loras FILE:WEIGHT" in capsys.readouterr().err
