"""Opening strangers' images: what is listed, what comes out, and what is refused before it is decoded."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from brushset.errors import InputError
from brushset.files import one_line, sha256_file
from brushset.images import open_as_rgb, open_image, source_digest
from brushset.listing import list_source_images
from brushset.refusal import UnusableImage


def opened(path: Path, background: str = "#ffffff", limit: float = 64) -> Image.Image:
    return open_as_rgb(path, background, limit)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    size = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))


def test_a_missing_folder_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        list_source_images(tmp_path / "datasets" / "cartoon")
    assert str(caught.value) == "datasets/cartoon: no such folder; fix: put the images there or pass --images DIR"
    assert caught.value.exit_code == 3


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        list_source_images(tmp_path / "file")


def test_images_are_listed_sorted_by_name_through_all_folders(tmp_path: Path):
    for name in ("b.jpg", "a/c.PNG", "a.webp", "notes.txt", "ATTRIBUTION.csv", "x.psd", "no_suffix"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in list_source_images(tmp_path)]
    assert found == ["a.webp", "a/c.PNG", "b.jpg", "x.psd"]


def test_the_digest_covers_images_and_their_captions_and_nothing_else(tmp_path: Path):
    for name in ("a.png", "a.txt", "b.png", "ATTRIBUTION.txt", "c.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert source_digest(tmp_path) == {name: sha256_file(tmp_path / name) for name in ("a.png", "a.txt", "b.png")}


def test_the_format_is_told_by_content(tmp_path: Path):
    noise(8, 8).save(tmp_path / "x.jpg", "PNG")
    assert open_image(tmp_path / "x.jpg", "#ffffff", 64).format == "PNG"
    noise(8, 8).save(tmp_path / "x.png", "PPM")
    with pytest.raises(UnusableImage):
        opened(tmp_path / "x.png")


def test_the_pixel_limit_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    noise(300, 100).save(tmp_path / "x.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_prepare", lambda _: pytest.fail("decoded"))
    with pytest.raises(UnusableImage, match=r"max_megapixels = 0\.02"):
        opened(tmp_path / "x.png", limit=0.02)


@pytest.mark.parametrize("pixels", [100, 300])
def test_pillows_own_bomb_warning_and_error_refuse_too(pixels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    noise(10, 15).save(tmp_path / "x.png")
    if pixels == 300:
        assert opened(tmp_path / "x.png").size == (10, 15)
    else:
        with pytest.raises(UnusableImage, match="megapixels, above"):
            opened(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_file_is_an_error_and_never_a_grey_half(suffix: str, tmp_path: Path):
    noise(200, 200).save(tmp_path / f"x.{suffix}")
    data = (tmp_path / f"x.{suffix}").read_bytes()
    (tmp_path / f"x.{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(UnusableImage, match="truncated"):
        opened(tmp_path / f"x.{suffix}")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_rotation_is_applied_and_no_exif_is_left(orientation: int, tmp_path: Path):
    """Each of the eight orientations shows the same picture: red in the upper left corner, wide."""
    shown = Image.new("RGB", (48, 32), "blue")
    shown.paste("red", (0, 0, 24, 16))
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    undo |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    stored = shown.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    stored.save(tmp_path / "x.png", exif=exif)
    result = opened(tmp_path / "x.png")
    assert np.array_equal(np.asarray(result), np.asarray(shown))
    assert not dict(result.getexif())
    assert result.info == {}


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_transparency_is_laid_over_the_background(suffix: str, tmp_path: Path):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    image.save(tmp_path / f"x.{suffix}", lossless=True)
    result = opened(tmp_path / f"x.{suffix}", "#00ff00")
    assert [result.getpixel((x, 0)) for x in range(3)] == [(0, 255, 0), (255, 0, 0), (0, 127, 0)]


def test_palette_and_colour_key_transparency_count(tmp_path: Path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "one.png", transparency=0)
    palette.save(tmp_path / "one.gif", transparency=0)
    palette.save(tmp_path / "levels.png", transparency=bytes([0, 255]))
    Image.fromarray(np.array([[[0, 0, 0], [255, 0, 0]]], np.uint8)).save(tmp_path / "key.png", transparency=(0, 0, 0))
    for name in ("one.png", "one.gif", "levels.png", "key.png"):
        result = opened(tmp_path / name, "#0000ff")
        assert [result.getpixel((x, 0)) for x in range(2)] == [(0, 0, 255), (255, 0, 0)], name


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "x.png")
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "x.tif")
    for name in ("x.png", "x.tif"):
        assert np.asarray(opened(tmp_path / name))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_pixels_without_a_defined_white_are_refused(tmp_path: Path):
    Image.fromarray(np.array([[0.0, 1.0]], np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UnusableImage, match="floating-point"):
        opened(tmp_path / "x.tif")
    Image.fromarray(np.array([[0, 100_000]], np.int32)).save(tmp_path / "y.tif")
    with pytest.raises(UnusableImage, match="32-bit"):
        opened(tmp_path / "y.tif")


def swapped_primaries() -> bytes:
    """A colour profile in which red and blue are exchanged: sRGB's with two tags renamed, under another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"?XYZ"), (b"bXYZ", b"rXYZ"), (b"?XYZ", b"bXYZ")):
        profile = profile.replace(old, new, 1)
    return profile.replace("sRGB".encode("utf-16-be"), "bgrR".encode("utf-16-be"))


def test_an_embedded_profile_is_converted_to_srgb(tmp_path: Path):
    Image.new("RGB", (4, 4), (200, 100, 50)).save(tmp_path / "x.png", icc_profile=swapped_primaries())
    Image.new("RGBA", (4, 4), (200, 100, 50, 255)).save(tmp_path / "y.png", icc_profile=swapped_primaries())
    for name in ("x.png", "y.png"):
        result = open_image(tmp_path / name, "#ffffff", 64)
        assert np.abs(np.asarray(result.rgb.getpixel((0, 0))) - (50, 100, 200)).max() <= 2
        assert result.note == ""


def test_an_srgb_profile_changes_no_value(tmp_path: Path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    noise(16, 16).save(tmp_path / "x.png", icc_profile=srgb.tobytes())
    assert np.array_equal(np.asarray(opened(tmp_path / "x.png")), np.asarray(noise(16, 16)))


@pytest.mark.parametrize("space", ["XYZ", "broken"])
def test_a_profile_that_does_not_fit_is_named_and_the_values_are_kept(space: str, tmp_path: Path):
    icc = b"no profile" if space == "broken" else ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()
    Image.new("RGB", (4, 4), (200, 100, 50)).save(tmp_path / "x.png", icc_profile=icc)
    result = open_image(tmp_path / "x.png", "#ffffff", 64)
    assert result.rgb.getpixel((0, 0)) == (200, 100, 50)
    assert "colour profile not usable" in result.note


def test_cmyk_without_a_profile_becomes_rgb_and_says_so(tmp_path: Path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    result = open_image(tmp_path / "x.jpg", "#ffffff", 64)
    red, green, blue = result.rgb.getpixel((1, 1))
    assert red > 240
    assert green < 15
    assert blue < 15
    assert "approximate" in result.note


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation_is_taken(suffix: str, tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert opened(tmp_path / f"x.{suffix}").getpixel((4, 4)) == (255, 0, 0)


def test_many_threads_decode_without_disturbing_the_warning_filters(tmp_path: Path):
    noise(32, 32).save(tmp_path / "x.png")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: opened(tmp_path / "x.png").size, range(200)))
    assert results == [(32, 32)] * 200
    assert warnings.filters == before


def test_what_cannot_be_printed_is_shown_as_escapes():
    assert one_line("a\nb\tc\x1b[31m \udcff é 🎨") == r"a\nb\tc\x1b[31m \udcff é 🎨"
