"""Pictures go to the networks from memory where they were just made, and give what their files would give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from eval_case import noise_images
from eval_runs import SETTINGS, FakeGenerator
from PIL import Image

from brushset.log import silent
from eval import made_up
from eval.cells import BASE_CELL, Place
from eval.embedder import Embedder, Identity, Towers
from eval.frames import Frames
from eval.layout import Layout
from eval.look import Pictures, look_at
from eval.preprocess import Preprocess
from eval.sample import sample_grid

SIZE = (64, 64)


def small_eye() -> Embedder:
    """Sees a picture as CLIP's preprocessing leaves it, and no more."""
    resize = Preprocess(16, 16)
    towers = Towers(lambda images: resize(images).reshape(len(images), -1))
    return Embedder(Identity("eye", "", meaningful=False), lambda: towers)


def test_a_picture_from_memory_has_the_key_and_the_vector_that_its_file_has(tmp_path: Path) -> None:
    for size in (SIZE, (80, 64)):  # the other is fitted
        (image,) = noise_images(1, 1, size)
        path = tmp_path / f"{size[0]}.png"
        image.save(path)
        made = Frames()
        made.put(path, image)
        held, read = made.frame(path, SIZE), Frames().frame(path, SIZE)
        assert held.key == read.key
        assert held.image.tobytes() == read.image.tobytes()
        np.testing.assert_array_equal(small_eye().encode_frames([held]), small_eye().encode_frames([read]))


def test_what_was_just_sampled_is_looked_at_without_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, places = Frames(), [Place(0, "a cat", 1), Place(0, "a cat", 2), Place(1, "a house", 1)]
    wanted = [(BASE_CELL, place) for place in places]
    sample_grid(FakeGenerator(), [wanted[:2], wanted[2:]], SETTINGS, tmp_path, frames=frames)
    files = [tmp_path / "images" / "base" / place.file for place in places]
    pictures = Pictures(
        Layout("ink", ""), SIZE, {"base": files}, [], [], {}, [place.prompt_index for place in places], [], frames
    )
    extractors = {"csd": small_eye(), "lpips": made_up.make_lpips("cpu")}
    from_files = look_at(
        Pictures(**{**pictures.__dict__, "frames": Frames()}),
        {"csd": small_eye(), "lpips": made_up.make_lpips("cpu")}, silent,
    )  # fmt: skip
    monkeypatch.setattr("eval.frames.open_rgb", lambda path: pytest.fail(f"{path} was read"))
    from_memory = look_at(pictures, extractors, silent)
    for name in ("csd", "lpips"):
        np.testing.assert_array_equal(from_memory[name].cells["base"], from_files[name].cells["base"])
    assert all(file.is_file() for file in files)


def test_what_was_looked_at_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (image,) = noise_images(1, 1, SIZE)
    image.save(tmp_path / "a.png")
    frames, csd = Frames(), small_eye()
    first = csd.encode_frames([frames.frame(tmp_path / "a.png", SIZE)])
    monkeypatch.setattr("eval.frames.open_rgb", lambda path: pytest.fail(f"{path} was read"))
    np.testing.assert_array_equal(csd.encode_frames([frames.frame(tmp_path / "a.png", SIZE)]), first)


def test_beyond_its_bytes_the_oldest_is_read_from_its_file(tmp_path: Path) -> None:
    frames = Frames(most_bytes=2 * 4 * 64 * 64)
    for number, image in enumerate(noise_images(3, 1, SIZE)):
        frames.put(tmp_path / f"{number}.png", image)
    Image.new("RGB", SIZE, "red").save(tmp_path / "0.png")
    assert frames.open(tmp_path / "0.png").getpixel((0, 0)) == (255, 0, 0)
    assert not (tmp_path / "2.png").exists()
    assert frames.open(tmp_path / "2.png").size == SIZE


def test_the_bench_tells_each_way_of_looking(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench import looking

    monkeypatch.setattr("sys.argv", ["looking.py", "--images", "2"])
    looking.main()
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["way"] for each in told][1:] == ["from files", "from memory", "looked at again"]
    assert told[3]["cpu_s_per_100"] < told[2]["cpu_s_per_100"]
