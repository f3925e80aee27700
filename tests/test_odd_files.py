"""What strangers' folders hold: each kind of odd file made for real, with the exact line that it gets."""

from __future__ import annotations

import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image

from brushset.audit.folder import audit_folder
from brushset.audit.settings import AuditSettings
from brushset.errors import InputError
from brushset.files import digest_files, list_files
from brushset.images import open_image, source_digest
from brushset.listing import list_folder
from brushset.log import silent
from brushset.paths import RunPaths
from brushset.pipeline import Pipeline
from brushset.records import Audit, Prepared
from brushset.refusal import UnusableImage
from brushset.spec import DatasetSection, StyleSpec, TrainSection
from brushset.stages import audit, preprocess

SETTINGS = AuditSettings.of(StyleSpec(name="mine", trigger="t"))
ODD_FORMATS = (Path(__file__).parents[2] / "shared" / "data" / "odd_formats").resolve()
FETCH = "download or copy it again, or remove it"
CONVERT = "save it as PNG or JPEG, or remove it"
TRUNCATED = f"truncated: the end of the file is missing; fix: {FETCH}"
NO_FORMAT = f"no PNG, JPEG, WEBP, BMP, GIF or TIFF; fix: {CONVERT}"


def noise(width: int = 64, height: int = 64, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def picture(width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(noise(width, height))


def cut(path: Path) -> None:
    """The first half of an image of the suffix's format."""
    picture().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(path: Path, header: tuple[int, int, int, int], pixels: bytes, *chunks: bytes) -> None:
    """`header`: width, height, bits, colour type. `pixels` with a filter byte before each row."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    path.write_bytes(start + b"".join(chunks) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b""))


def png_of_16_bits(path: Path, values: list[list[int]], colour_type: int, *chunks: bytes) -> None:
    """One row of pixels."""
    pixels = b"\0" + np.array(values, ">u2").tobytes()
    png(path, (len(values), 1, 16, colour_type), pixels, *chunks)


def pixel_bomb(path: Path) -> None:
    """A PNG of 20,000 × 20,000 whose 50 MB of nothing pack into 49 kB."""
    png(path, (20_000, 20_000, 1, 0), bytes(20_000 * 2501))


def text_bomb(path: Path) -> None:
    """Sound pixels, and a comment that unpacks to 100 MB."""
    png(path, (1, 1, 8, 0), b"\0\0", chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000))))


def as_floats(path: Path) -> None:
    Image.fromarray(np.array([[0.0, 1.0]], np.float32)).save(path)


def bytes_of(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


# name → how it is made, and the line without its path.
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    **{f"cut.{suffix}": (cut, TRUNCATED) for suffix in ("png", "jpg", "webp", "bmp", "gif", "tif")},
    "nothing.png": (bytes_of(b""), f"empty: 0 bytes; fix: {FETCH}"),
    "text.png": (bytes_of(b"I am no image.\n"), "text, not an image; fix: remove it"),
    "bytes.png": (bytes_of(b"\1\2\3\xfe" * 99), NO_FORMAT),
    "page.jpg": (
        bytes_of(b"<!DOCTYPE html>\n<html><title>403</title>"),
        "a web page, not an image; fix: download the image itself, or remove it",
    ),
    "lfs.png": (
        bytes_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        "a Git LFS pointer, not the image itself; fix: git lfs pull",
    ),
    "phone.jpg": (bytes_of(b"\0\0\0\x24ftypheic\0\0\0\0mif1"), f"a HEIC file, which is not read here; fix: {CONVERT}"),
    "drawing.svg": (bytes_of(b"<svg xmlns='x'/>"), f"an SVG file, which is not read here; fix: {CONVERT}"),
    "anymap.png": (lambda path: picture().save(path, "PPM"), f"a portable anymap (PNM) file, which is not read here; fix: {CONVERT}"),
    "header.png": (
        bytes_of(b"\x89PNG\r\n\x1a\n" + bytes(40)),
        f"damaged: it begins as a PNG and does not go on as one; fix: {FETCH}",
    ),
    "bomb.png": (
        pixel_bomb,
        "400 megapixels, above [dataset] max_megapixels = 64; fix: scale it down, or remove it",
    ),
    "large.gif": (
        lambda path: Image.new("P", (9000, 8000)).save(path),
        "9000×8000 is 72 megapixels, above [dataset] max_megapixels = 64; fix: scale it down, or remove it",
    ),
    "comment.png": (text_bomb, "its metadata unpacks to more than is safe; fix: save it anew without metadata"),
    "floats.tif": (
        as_floats,
        "floating-point pixels have no defined white; fix: save it with 8 bits a sample, or remove it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_gets_one_line_with_file_and_fix(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    make, line = REFUSED[name]
    make(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert list_folder(tmp_path).images == (tmp_path / name,)
    with pytest.raises(UnusableImage) as caught:
        open_image(tmp_path / name, "#ffffff", 64)
    assert str(caught.value) == f"{name}: {line}"


@pytest.mark.parametrize("name", REFUSED)
def test_the_audit_says_of_each_what_opening_it_says(name: str, tmp_path: Path):
    make, line = REFUSED[name]
    make(tmp_path / name)
    result = audit_folder(tmp_path, SETTINGS, silent)
    (image,) = result.images
    assert (image.path, image.verdict, image.findings) == (name, "unusable", {"unreadable": line})
    assert result.audit.verdict == "unusable"


@contextmanager
def as_nobody() -> Iterator[None]:
    """With the rights of a user whose the files are not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may enter, which pytest's own are not."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_file_without_permission_says_so(public: Path):
    picture().save(public / "x.png")
    (public / "x.png").chmod(0)
    with as_nobody(), pytest.raises(UnusableImage) as caught:
        open_image(public / "x.png", "#ffffff", 64)
    assert caught.value.reason == "cannot be read: Permission denied"
    assert caught.value.fix == "its permissions, or remove it"


def grey_levels(path: Path, values: list[list[int]], colour_type: int, *chunks: bytes) -> list[int]:
    png_of_16_bits(path, values, colour_type, *chunks)
    return [int(value) for value in np.asarray(open_image(path, "#00ff00", 64).rgb)[0, :, 0]]


@pytest.mark.parametrize(("colour_type", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_are_scaled_whatever_the_channels(colour_type: int, samples: int, tmp_path: Path):
    values = [[level] * samples for level in (0, 257, 0x80FF, 0xFEFF, 0xFFFF)]
    if colour_type in {4, 6}:
        values = [[*samples[:-1], 0xFFFF] for samples in values]
    assert grey_levels(tmp_path / "x.png", values, colour_type) == [0, 1, 128, 254, 255]


def test_a_transparent_colour_of_16_bits_hides_that_colour_and_no_other(tmp_path: Path):
    """Pillow compares the key's 16 bits with the 8 that it kept, and makes white transparent instead."""
    values = [[level] * 3 for level in (0, 0x8000, 0xFFFF)]
    key = chunk(b"tRNS", struct.pack(">HHH", 0x8000, 0x8000, 0x8000))
    assert grey_levels(tmp_path / "x.png", values, 2, key) == [0, 0, 255]
    assert open_image(tmp_path / "x.png", "#00ff00", 64).rgb.getpixel((1, 0)) == (0, 255, 0)


def deep(path: Path) -> None:
    png_of_16_bits(path, [[0, 0, 0]] * 4, 2)


def palette_with_transparency(path: Path) -> None:
    picture().quantize(8).save(path, transparency=bytes([0, 128, 255]))


def cmyk(path: Path) -> None:
    picture().convert("CMYK").save(path)


def animated(path: Path) -> None:
    picture().save(path, save_all=True, append_images=[Image.new("RGB", (64, 64))])


def upside_down(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    picture().save(path, exif=exif)


def with_broken_exif(path: Path) -> None:
    png(path, (1, 1, 8, 0), b"\0\0", chunk(b"eXIf", b"nonsense"))


# name → how it is made, what was done to it, what had to be guessed.
CONVERTED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "deep.png": (deep, "16 bits a sample: scaled to 8", ""),
    "palette.png": (palette_with_transparency, "transparent: laid over #ffffff", ""),
    "cmyk.jpg": (cmyk, "", "CMYK without a colour profile: colours are approximate"),
    "cmyk.tif": (cmyk, "", "CMYK without a colour profile: colours are approximate"),
    "turned.jpg": (upside_down, "turned upright, as its EXIF orientation says", ""),
    **{
        f"moving.{suffix}": (animated, f"several frames ({kind}): the first is taken", "")
        for suffix, kind in {"gif": "GIF", "webp": "WEBP", "png": "PNG", "tif": "TIFF"}.items()
    },
    "plain.png": (lambda path: picture().save(path), "", ""),
    "plain.webp": (lambda path: picture().save(path), "", ""),
    "opaque.png": (lambda path: picture().convert("RGBA").save(path), "", ""),
    "turned_how.png": (with_broken_exif, "", "EXIF is broken: orientation unknown, taken as it lies"),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_can_be_used_becomes_rgb_and_says_what_was_done(name: str, tmp_path: Path):
    make, conversion, guess = CONVERTED[name]
    make(tmp_path / name)
    opened = open_image(tmp_path / name, "#ffffff", 64)
    assert (opened.rgb.mode, opened.rgb.info) == ("RGB", {})
    assert (opened.conversions, opened.guesses) == ((conversion,) * bool(conversion), (guess,) * bool(guess))


def left_out(folder: Path) -> list[str]:
    return [str(item) for item in list_folder(folder).left_out]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        made.bind(path.name)
        os.chdir(before)


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


# name → how it is made, and its line.
LEFT_OUT: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe.png": (pipe, "pipe.png: a pipe, not a file; fix: remove it"),
    "socket.png": (unix_socket, "socket.png: a socket, not a file; fix: remove it"),
    "out.png": (link("../outside/real.png"), "out.png: a link out of the folder; fix: copy the file itself into the folder"),
    "folder_out": (
        link("../outside"),
        "folder_out: a link to a folder outside, which is not entered; fix: copy the folder itself, or pass it by --images",
    ),
    "folder_loop": (link("."), "folder_loop: a link to a folder in this folder, which is listed there; fix: none needed"),
    "loop.png": (link("loop.png"), "loop.png: a link that leads in a circle; fix: remove it"),
    "nowhere.png": (link("gone.png"), "nowhere.png: a link to nothing; fix: remove it"),
    ".hidden.png": (
        lambda path: picture().save(path),
        ".hidden.png: hidden: its name begins with a dot; fix: rename it if it is meant",
    ),
    os.fsdecode(b"caf\xe9.png"): (bytes_of(b""), r"caf\udce9.png: its name is not UTF-8; fix: rename it"),
    os.fsdecode(b"caf\xe9"): (Path.mkdir, r"caf\udce9: its name is not UTF-8; fix: rename it"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_gets_one_line_and_the_rest_goes_on(name: str, tmp_path: Path):
    make, line = LEFT_OUT[name]
    for folder in ("set", "outside"):
        (tmp_path / folder).mkdir()
        picture().save(tmp_path / folder / "real.png")
    make(tmp_path / "set" / name)
    assert left_out(tmp_path / "set") == [line]
    assert line.isprintable()
    assert [path.name for path in list_folder(tmp_path / "set").images] == ["real.png"]


def test_what_claims_nothing_is_counted_and_a_macs_neighbours_are_not(tmp_path: Path):
    for name in ("notes.txt", "no_suffix", "._photo.jpg", os.fsdecode(b"caf\xe9.txt")):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.png").write_bytes(b"")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    found = list_folder(tmp_path)
    assert (found.images, found.left_out, found.others) == ((), (), 4)


def test_a_subfolder_without_permission_is_one_line_and_the_rest_goes_on(public: Path):
    for name in ("a/closed/x.png", "a/open/y.png", "a/listed_only/z.png"):
        (public / name).parent.mkdir(parents=True)
        picture().save(public / name)
    (public / "a/closed").chmod(0)
    (public / "a/listed_only").chmod(0o744)
    with as_nobody():
        assert left_out(public) == [
            "a/closed: the folder cannot be read: Permission denied; fix: its permissions, or remove it"
        ]
        assert [path.name for path in list_folder(public).images] == ["z.png", "y.png"]
        with pytest.raises(UnusableImage, match="cannot be read: Permission denied"):
            open_image(public / "a/listed_only/z.png", "#ffffff", 64)
        with pytest.raises(InputError, match="closed: cannot be read: Permission denied; fix: its permissions"):
            list_folder(public / "a" / "closed")


def test_a_thousand_nested_folders_are_walked(tmp_path: Path):
    folders = [tmp_path]
    for _ in range(1050):
        folders.append(folders[-1] / "x")
        folders[-1].mkdir()
    (folders[-1] / "y.png").write_bytes(b"")
    assert list_folder(tmp_path).images == (folders[-1] / "y.png",)
    (folders[-1] / "y.png").unlink()
    for folder in reversed(folders[1:]):  # pytest's own removal recurses, and would fail
        folder.rmdir()


# A file name may have 255 bytes.
ODD_NAMES = (
    "with space.png", 'it\'s "quoted".png', "two\nlines.png", "🎨👩‍🎨.png", "-rf.png", "--style.png", "UPPER.PNG",
    "a.b.c.png", "$(touch x).png", "`id`.png", "%s%n.png", "[red]x.png", "<img src=x>.png", "back\\slash.png",
    "\u202egnp.exe.png", "a" * 251 + ".png", "é" * 125 + ".png", "e\u0301.png", "\x1b[31mred.png", "con.png", ";&|*?.png",
)  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_odd_names_are_listed_opened_and_shown_on_one_line(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b"")
    (path,) = list_folder(tmp_path).images
    assert path.name == name
    with pytest.raises(UnusableImage) as caught:
        open_image(path, "#ffffff", 64)
    assert str(caught.value).isprintable()
    picture().save(path, "PNG")
    assert open_image(path, "#ffffff", 64).rgb.size == (64, 64)
    assert list(source_digest(tmp_path)) == [name]


ANYMAP = f"a portable anymap (PNM) file, which is not read here; fix: {CONVERT}"
DEEP = "16 bits a sample: scaled to 8"
LAID = "transparent: laid over #ffffff"
# Pillow's own test images: the ones that are refused, and what is done to the others.
REFUSED_OF_PILLOW = {
    "broken.png": f"damaged: it begins as a PNG and does not go on as one; fix: {FETCH}",
    "broken_data_stream.png": f"damaged (unrecognized data stream contents when reading image file); fix: {FETCH}",
    "decompression_bomb.gif": "4365 megapixels, above [dataset] max_megapixels = 64; fix: scale it down, or remove it",
    "hopper.ppm": ANYMAP,
    "hopper_16bit.pgm": ANYMAP,
    "hopper_draw.ico": f"an icon file, which is not read here; fix: {CONVERT}",
    "hopper_merged.psd": f"a Photoshop file, which is not read here; fix: {CONVERT}",
    "la.tga": NO_FORMAT,
    "negative_size.ppm": "text, not an image; fix: remove it",
    "png_decompression_dos.png": "its metadata unpacks to more than is safe; fix: save it anew without metadata",
    "truncated_end_chunk.png": TRUNCATED,
    "truncated_image.png": TRUNCATED,
    "truncated_jpeg.jpg": TRUNCATED,
    "ultrahdr.jpg": TRUNCATED,
    "zero_height.j2k": f"a JPEG 2000 file, which is not read here; fix: {CONVERT}",
    "zero_width.gif": f"damaged: it begins as a GIF and does not go on as one; fix: {FETCH}",
}
FRAMES = "several frames ({}): the first is taken"
UPRIGHT = "turned upright, as its EXIF orientation says"
CONVERTED_OF_PILLOW = {
    "16bit.cropped.tif": DEEP,
    "16bit.r.tif": DEEP,
    "dispose_bgnd.gif": FRAMES.format("GIF"),
    "frozenpond.mpo": FRAMES.format("MPO"),
    "g4-multi.tiff": FRAMES.format("TIFF"),
    "hopper_orientation_2.webp": UPRIGHT,
    "i_trns.png": f"{DEEP}; {LAID}",
    "icc_profile_big.jpg": "colours converted from TIFF RGB",
    "iss634.gif": FRAMES.format("GIF"),
    "iss634.webp": FRAMES.format("WEBP"),
    "multipage.tiff": FRAMES.format("TIFF"),
    "pil_sample_cmyk.jpg": "CMYK without a colour profile: colours are approximate",
    "sugarshack.mpo": FRAMES.format("MPO"),
    **dict.fromkeys(
        ("l_trns.png", "p_trns_single.png", "pil123p.png", "pil123rgba.png", "rgb_trns.png", "transparent.gif",
         "transparent.png", "transparent.webp"),
        LAID,
    ),
}  # fmt: skip
PLAIN_OF_PILLOW = (
    "anim_frame1.webp", "bw_gradient.png", "exif-dpi-zerodivision.jpg", "exif.png", "exif_gps.jpg", "exif_typeerror.jpg",
    "hopper.bmp", "hopper.gif", "hopper.iccprofile.tif", "hopper.jpg", "hopper.png", "hopper.tif", "hopper.webp",
    "hopper_gray.jpg", "hopper_gray_4bpp.tif", "icc_profile.png", "invalid-exif-without-x-resolution.jpg",
    "invalid-exif.jpg", "junk_jpeg_header.jpg", "multipage-lastframe.tif", "multiple_exif.jpg", "padded_idat.png",
    "pal8rletrns.bmp", "photoshop-200dpi-broken.jpg", "photoshop-200dpi.jpg", "pil_sample_rgb.jpg",
)  # fmt: skip


@pytest.mark.skipif(not ODD_FORMATS.is_dir(), reason="no ../shared/data/odd_formats beside the project")
def test_pillows_own_odd_files_get_their_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ODD_FORMATS)
    expected = {name: f"{name}: {line}" for name, line in REFUSED_OF_PILLOW.items()}
    expected |= CONVERTED_OF_PILLOW | dict.fromkeys(PLAIN_OF_PILLOW, "")
    found = {path.name: said_of(path) for path in list_folder(ODD_FORMATS).images}
    assert found == expected
    assert len(found) == 63


def said_of(path: Path) -> str:
    try:
        opened = open_image(path, "#ffffff", 64)
    except UnusableImage as error:
        return str(error)
    return "; ".join((*opened.conversions, *opened.guesses))


def everything_odd(folder: Path) -> None:
    """One of each, in one folder, and a folder outside of it."""
    folder.mkdir()
    (folder.parent / "outside").mkdir()
    picture().save(folder.parent / "outside" / "real.png")
    for corpus in (REFUSED, CONVERTED, LEFT_OUT):
        for name, (make, *_) in corpus.items():
            make(folder / name)
    for name in ODD_NAMES:
        picture().save(folder / name, "PNG")


def style_of(folder: Path) -> StyleSpec:
    """Trains at 64 px, so that the small pictures here are large enough."""
    return StyleSpec(
        name="mine",
        trigger="t",
        dataset=DatasetSection(images=str(folder), resolution=64, accept=("too-small",)),
        train=TrainSection(min_bucket_reso=64),
    )


def test_a_set_with_one_of_each_goes_on_with_the_rest_and_counts_what_it_leaves(tmp_path: Path):
    everything_odd(tmp_path / "set")
    run = RunPaths(tmp_path / "runs" / "mine" / "one")
    pipeline = Pipeline(style_of(tmp_path / "set"), run, silent)
    before = digest_files(list_files(tmp_path / "set"), tmp_path / "set")
    pipeline.execute([audit.STAGE, preprocess.STAGE])
    found = Audit.model_validate(pipeline.done["audit"].data)
    prepared = Prepared.model_validate(pipeline.done["preprocess"].data)
    assert found.found == len(REFUSED) + len(CONVERTED) + len(ODD_NAMES)
    assert found.unusable == len(REFUSED)
    assert sorted(found.left_out) == sorted(line for _, line in LEFT_OUT.values())
    reasons = {name: line.partition("; fix: ")[0] for name, (_, line) in REFUSED.items()}
    assert {name: prepared.skipped[name] for name in REFUSED} == reasons
    copies = {name for name, reason in prepared.skipped.items() if reason.startswith("the same bytes as")}
    assert set(prepared.skipped) == set(REFUSED) | copies
    for image in prepared.images:
        with Image.open(run.images / image.name) as made:
            assert (made.format, made.mode, dict(made.getexif())) == ("PNG", "RGB", {})
    assert len(prepared.images) == len(CONVERTED) + len(ODD_NAMES) - len(copies)
    assert digest_files(list_files(tmp_path / "set"), tmp_path / "set") == before


def test_a_set_of_nothing_else_is_refused_with_code_3(tmp_path: Path):
    (tmp_path / "set").mkdir()
    for name, (make, _) in REFUSED.items():
        make(tmp_path / "set" / name)
    picture().save(tmp_path / "set" / "one.png")
    run = RunPaths(tmp_path / "runs" / "mine" / "one")
    with pytest.raises(InputError, match=f"{len(REFUSED)} of {len(REFUSED) + 1} images cannot be trained on") as caught:
        Pipeline(style_of(tmp_path / "set"), run, silent).execute([audit.STAGE])
    assert caught.value.exit_code == 3
    page = run.logs / "audit" / "index.html"
    assert str(page) in str(caught.value), "where each is shown"
    assert all(name in page.read_text() for name in REFUSED if name.isalnum())
