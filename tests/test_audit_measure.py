"""What is measured of one image: against pictures whose answer is known, and against a full decode."""

from __future__ import annotations

import io
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageFilter

from brushset.audit import measure
from brushset.audit.measure import (
    NORMAL_PX,
    MeasureLimits,
    find_margins,
    is_uniform,
    jpeg_quality,
    measure_image,
    normal_luma,
    perceptual_hash,
    sharpness,
    tones,
)
from brushset.files import sha256_file

LIMITS = MeasureLimits("#ffffff", 64.0, thumbnail=True)


def photo() -> Image.Image:
    """512 square, from scikit-image."""
    from skimage import data

    return Image.fromarray(data.astronaut())


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def measures_of(path: Path) -> dict[str, object]:
    result = measure_image(path, LIMITS)
    assert result.measures is not None, result.error
    return result.measures


def test_facts_of_the_file_are_its_own(tmp_path: Path):
    path = saved(tmp_path / "x.png", photo(), format="JPEG", quality=70)
    result = measure_image(path, LIMITS)
    assert (result.format, result.mode, result.width_px, result.height_px) == ("JPEG", "RGB", 512, 512)
    assert (result.sha256, result.size_bytes) == (sha256_file(path), path.stat().st_size)
    assert result.measures is not None
    assert result.measures["jpeg_quality"] == 70
    assert measures_of(saved(tmp_path / "y.png", photo()))["jpeg_quality"] is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_measures_as_it_is_displayed(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", photo().crop((0, 0, 512, 300)).resize((2048, 1200)), exif=exif)
    result = measure_image(path, LIMITS)
    assert (result.width_px, result.height_px) == ((2048, 1200) if orientation < 5 else (1200, 2048))
    assert measures_of(path)["orientation"] == orientation
    with Image.open(io.BytesIO(result.thumbnail)) as thumbnail:
        assert (thumbnail.width > thumbnail.height) == (orientation < 5)


@pytest.mark.parametrize("quality", [1, 10, 30, 50, 75, 90, 95, 100])
def test_jpeg_quality_is_told_from_the_tables(quality: int):
    content = io.BytesIO()
    photo().save(content, "JPEG", quality=quality)
    with Image.open(content) as image:
        assert jpeg_quality(image.quantization) == pytest.approx(quality, abs=1)
    assert jpeg_quality({}) is None


@pytest.mark.parametrize(("width", "kind"), [(700, "jpg"), (1100, "jpg"), (2300, "jpg"), (4400, "jpg"), (2300, "png")])
def test_a_reduced_decode_measures_as_a_full_one(tmp_path: Path, width: int, kind: str):
    large = photo().resize((width, width), Image.Resampling.LANCZOS)
    path = saved(tmp_path / f"a.{kind}", large, **({"quality": 92} if kind == "jpg" else {}))
    result = measure_image(path, LIMITS)
    with Image.open(path) as image:
        whole = image.convert("RGB")
    luma = normal_luma(whole)
    assert result.measures is not None
    assert (result.width_px, result.height_px) == (width, width)
    assert (int(result.phash, 16) ^ int(str(imagehash.phash(whole)), 16)).bit_count() <= 2
    assert result.measures["sharpness"] == pytest.approx(sharpness(luma), rel=0.3)
    assert result.measures["mean_luma"] == pytest.approx(tones(luma)["mean_luma"], abs=0.005)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("width", [600, 1300, 2600, 5000])
def test_a_truncated_jpeg_is_found_though_it_is_decoded_at_a_fraction(tmp_path: Path, width: int, progressive: bool):
    path = saved(tmp_path / "a.jpg", photo().resize((width, width)), progressive=progressive)
    whole = path.read_bytes()
    for share in (0.3, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        result = measure_image(path, LIMITS)
        assert result.error == "truncated: the end of the file is missing"
        assert result.measures is None


def test_the_hash_is_imagehashs(tmp_path: Path):
    small = photo().resize((NORMAL_PX, NORMAL_PX))
    assert perceptual_hash(normal_luma(small)) == str(imagehash.phash(small.convert("L")))
    assert measure_image(saved(tmp_path / "a.png", small), LIMITS).phash == str(imagehash.phash(small))


def test_alpha_is_the_share_of_pixels_that_something_shows_through(tmp_path: Path):
    image = photo().convert("RGBA")
    alpha = Image.new("L", (512, 512), 255)
    alpha.paste(0, (0, 0, 128, 512))
    alpha.paste(254, (128, 0, 256, 512))
    image.putalpha(alpha)
    assert measures_of(saved(tmp_path / "a.png", image))["alpha_share"] == 0.5
    assert measures_of(saved(tmp_path / "b.png", photo().convert("RGBA")))["alpha_share"] == 0
    palette = photo().quantize(16)
    share = np.mean(np.asarray(palette) == 3)
    path = saved(tmp_path / "c.png", palette, transparency=3)
    assert measures_of(path)["alpha_share"] == pytest.approx(share, abs=1e-4)


def test_black_below_transparency_is_not_seen(tmp_path: Path):
    image = Image.new("RGBA", (1200, 1200), (0, 0, 0, 0))
    image.paste(photo().convert("RGBA"), (300, 300))
    found = measures_of(saved(tmp_path / "a.png", image))
    assert found["margin"] == "frame"
    assert found["white_share"] > 0.7
    dark = measure_image(tmp_path / "a.png", MeasureLimits("#000000", 64.0))
    assert dark.measures is not None
    assert dark.measures["black_share"] > 0.7


def test_sharpness_is_the_variance_of_scipys_laplacian_and_falls_with_blur():
    from scipy.ndimage import laplace

    luma = normal_luma(photo())
    assert sharpness(luma) == pytest.approx(laplace(luma.astype(float))[1:-1, 1:-1].var(), rel=1e-4)
    values = [sharpness(normal_luma(photo().filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 1000
    assert values[-1] < 50
    assert sharpness(np.zeros((1, 300), np.uint8)) == 0


def test_tones_are_shares_of_the_pixels():
    luma = np.repeat(np.array([0, 2, 3, 100, 252, 253, 255, 255, 255, 255], np.uint8), 10).reshape(10, 10)
    assert tones(luma) == {
        "mean_luma": round(float(luma.mean()) / 255, 4), "contrast": 1.0, "black_share": 0.2, "white_share": 0.5,
    }  # fmt: skip
    assert tones(np.full((9, 9), 7, np.uint8))["contrast"] == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (64, 64)])
def test_the_smallest_images_are_measured_too(tmp_path: Path, size: tuple[int, int]):
    result = measure_image(saved(tmp_path / "a.png", photo().resize(size)), LIMITS)
    assert result.error == ""
    assert (result.width_px, result.height_px) == size


def test_uniform_is_one_colour_whatever_its_brightness_and_a_small_drawing_is_not():
    white = Image.new("RGB", (400, 400), "white")
    assert is_uniform(white)
    noisy = np.random.default_rng(0).integers(200, 206, (400, 400, 3), dtype=np.uint8)
    assert is_uniform(Image.fromarray(noisy))
    # Same luma, other colour: what only looks at brightness would miss it.
    two = Image.new("RGB", (400, 400), (255, 0, 0))
    two.paste((0, 130, 0), (0, 0, 200, 400))
    assert not is_uniform(two)
    white.paste("black", (0, 0, 20, 20))
    assert not is_uniform(white)


def test_letterbox_bars_are_a_frame_and_their_widths_are_found(tmp_path: Path):
    boxed = Image.new("RGB", (1024, 1024), "black")
    boxed.paste(photo().resize((1024, 600)), (0, 200))
    found = measures_of(saved(tmp_path / "a.jpg", boxed))
    assert found["margin"] == "frame"
    assert found["margins_px"] == pytest.approx((0, 200, 0, 224), abs=8)


def test_a_figure_on_plain_ground_is_no_frame():
    disc = Image.new("L", (300, 300), 250)
    disc.paste(
        Image.effect_noise((200, 200), 90),
        (50, 50),
        Image.radial_gradient("L").resize((200, 200)).point(lambda v: 255 * (v < 128)),
    )
    kind, share = find_margins(np.asarray(disc))
    assert kind == "ground"
    assert all(0.1 < side < 0.35 for side in share)


def test_a_full_picture_has_no_margin():
    assert find_margins(normal_luma(photo()))[0] == "none"
    assert find_margins(np.full((50, 60), 9, np.uint8)) == ("none", (0, 0, 0, 0))


def test_a_file_too_large_to_be_an_image_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(tmp_path / "a.png", photo())
    monkeypatch.setattr(measure, "MOST_BYTES", 1000)
    result = measure_image(path, LIMITS)
    assert "above the" in result.error
    assert result.sha256 == sha256_file(path)
    assert (result.width_px, result.measures) == (0, None)


def test_copies_of_one_picture_at_other_sizes_measure_alike(tmp_path: Path):
    base = measure_image(saved(tmp_path / "a.png", photo()), LIMITS)
    assert base.measures is not None
    for width, name in ((300, "b.png"), (300, "b.jpg"), (700, "b.png"), (1500, "b.jpg")):
        copy = measure_image(saved(tmp_path / name, photo().resize((width, width), Image.Resampling.LANCZOS)), LIMITS)
        assert copy.measures is not None
        assert (int(copy.phash, 16) ^ int(base.phash, 16)).bit_count() <= 2
        assert copy.measures["sharpness"] == pytest.approx(base.measures["sharpness"], rel=0.4)
        assert copy.measures["mean_luma"] == pytest.approx(base.measures["mean_luma"], abs=0.01)
