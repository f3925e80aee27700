"""Demo images: made from what the installed packages hold, the same each time, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brushset import demo
from brushset.demo import PHOTOGRAPHS, demo_folder, demo_images, recipe_of
from brushset.errors import EnvironmentProblem
from brushset.files import digest_files, list_files
from brushset.images import list_source_images, open_as_rgb, sidecar_of

STYLES = ("watercolor", "cartoon", "anime")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(open_as_rgb(path, "#000000", 64))


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[np.ndarray]]:
    """Two images of a style, as arrays."""
    root = tmp_path_factory.mktemp("demo")

    def images(style: str) -> list[np.ndarray]:
        folder = demo_images(style, root / style, count=2)
        return [pixels(path) for path in list_source_images(folder)]

    return images


def test_a_style_has_24_images_of_trainable_size_in_several_shapes():
    folder = demo_images("cartoon")
    assert folder == demo_folder("cartoon")
    sizes = [pixels(path).shape[1::-1] for path in list_source_images(folder)]
    assert len(sizes) == 24
    assert min(map(min, sizes)) == 512
    assert sizes.count((512, 512)) >= 12
    assert len(set(sizes)) >= 3


def test_every_photograph_is_there_and_credited(tmp_path: Path):
    folder = demo_images("soft", tmp_path / "demo", count=1)
    text = (folder / "ATTRIBUTION.txt").read_text()
    assert len(PHOTOGRAPHS) >= 5
    assert all(photograph.credit in text and photograph.file in text for photograph in PHOTOGRAPHS)
    assert all(sidecar_of(path).name != "ATTRIBUTION.txt" for path in list_source_images(folder))


def test_the_same_bytes_are_made_each_time(tmp_path: Path):
    digests = []
    for name in ("first", "second"):
        folder = demo_images("cartoon", tmp_path / name, count=4)
        digests.append(digest_files(list_files(folder), folder))
    assert digests[0] == digests[1]
    assert len(set(digests[0].values())) == 5


def test_the_three_styles_differ_from_one_another_and_from_the_photographs(painted):
    images = {style: painted(style) for style in STYLES}
    for style in STYLES:
        for other in STYLES:
            if style < other:
                differences = np.abs(images[style][0].astype(int) - images[other][0].astype(int))
                assert differences.mean() > 15, (style, other)


def test_a_cartoon_has_few_colours_and_ink_and_a_watercolor_has_bare_paper_at_the_rim(painted):
    cartoon, watercolor = painted("cartoon")[0], painted("watercolor")[0]
    assert len(np.unique(cartoon.reshape(-1, 3), axis=0)) <= 200
    assert 0.03 < (cartoon == 18).all(axis=2).mean() < 0.5
    assert watercolor[:4].mean() > 220
    assert len(np.unique(watercolor.reshape(-1, 3), axis=0)) > 5000


def test_any_other_style_name_gets_a_recipe_that_stays_with_it():
    assert recipe_of("ukiyo-e") is recipe_of("ukiyo-e")
    assert len({recipe_of(f"style{index}") for index in range(20)}) == 3


def test_finished_images_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = demo_images("soft", tmp_path / "demo", count=1)
    monkeypatch.setattr(demo, "_paint_all", lambda *_: pytest.fail("painted again"))
    assert demo_images("soft", tmp_path / "demo", count=1) == folder


def test_an_unfinished_folder_is_made_anew_and_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = demo._crop

    def broken(photograph, index):
        if index == 2:
            raise KeyboardInterrupt
        return whole(photograph, index)

    monkeypatch.setattr(demo, "_crop", broken)
    with pytest.raises(KeyboardInterrupt):
        demo_images("soft", tmp_path / "demo", count=3)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(demo, "_crop", whole)
    folder = demo_images("soft", tmp_path / "demo", count=3)
    list_source_images(folder)[0].unlink()
    assert len(list_source_images(demo_images("soft", tmp_path / "demo", count=3))) == 3


def test_photographs_that_are_not_installed_are_one_line_with_a_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "PHOTOGRAPHS", (demo.Photograph("skimage", "data/gone.png", ""),))
    with pytest.raises(EnvironmentProblem, match=r"gone\.png: no such file; fix:"):
        demo_images("soft", tmp_path / "demo", count=1)
