"""How the pixels of any image become upright 8-bit RGB in sRGB, with no transparency and no metadata left.

What cannot be known is guessed in the usual way and said: an orientation or a colour profile that does not parse.
What would be a wild guess (the white of floating-point pixels) is refused.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

from PIL import Image, ImageCms, ImageOps

from brushset.files import one_line

_ORIENTATION_TAG = 0x0112
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})


class NoDefinedWhite(ValueError):
    """Sound pixels of which nobody can say how light they are."""


@dataclass(frozen=True)
class SrgbImage:
    """`rgb` is mode RGB; `conversions` says what was done to its pixels, `guesses` what had to be assumed."""

    rgb: Image.Image
    conversions: tuple[str, ...]
    guesses: tuple[str, ...]


def to_srgb(image: Image.Image, background: str) -> SrgbImage:
    """The first frame as RGB: EXIF rotation applied, 16 bits scaled to 8, colours brought to sRGB by the embedded
    profile, transparency laid over `background` (such as "#ffffff").

    Raises:
        NoDefinedWhite: floating-point or 32-bit pixels; and whatever Pillow raises on a damaged file.
    """
    said = _Said()
    upright = _upright(image, said)
    colour = _colour(upright, said)
    alpha = _alpha(upright)
    if alpha is not None:
        said.conversions.append(f"transparent: laid over {background}")
    # A new image, so that no metadata comes along.
    result = Image.new("RGB", colour.size, background)
    result.paste(colour, mask=alpha)
    return SrgbImage(result, tuple(said.conversions), tuple(said.guesses))


@dataclass
class _Said:
    """What there is to say of one image, as it comes up."""

    conversions: list[str] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)


def _upright(image: Image.Image, said: _Said) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        turned = ImageOps.exif_transpose(image) if orientation != 1 else image
    except Exception:  # noqa: BLE001 - broken EXIF raises anything; the pixels are sound, so they are kept as they lie
        said.guesses.append("EXIF is broken: orientation unknown, taken as it lies")
        return image
    if orientation in range(2, 9):
        said.conversions.append("turned upright, as its EXIF orientation says")
    return turned


def _colour(image: Image.Image, said: _Said) -> Image.Image:
    """Colour without alpha, as mode RGB in sRGB."""
    if image.mode in _SIXTEEN_BIT_MODES:
        image = _scaled_to_8_bit(image)
    elif image.mode == "F":
        raise NoDefinedWhite("floating-point pixels have no defined white")
    icc = image.info.get("icc_profile")
    flat = _without_palette(image)
    if icc:
        try:
            return _from_profile(flat, bytes(icc), said)
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            said.guesses.append(one_line(f"colour profile not usable ({error}): taken as sRGB"))
            return flat.convert("RGB")
    if flat.mode == "LAB":
        said.conversions.append("converted from Lab")
        return _transformed(flat, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if flat.mode == "CMYK":
        said.guesses.append("CMYK without a colour profile: colours are approximate")
    return flat.convert("RGB")


def _without_palette(image: Image.Image) -> Image.Image:
    """In a mode that a colour profile can speak of: L, RGB, CMYK or LAB; alpha is dropped."""
    if image.mode in {"L", "RGB", "CMYK", "LAB"}:
        return image
    return image.convert("RGBA").convert("RGB") if image.mode in {"P", "PA"} else image.convert("RGB")


def _from_profile(image: Image.Image, icc: bytes, said: _Said) -> Image.Image:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = profile.profile.xcolor_space.strip()
    name = one_line(ImageCms.getProfileDescription(profile).strip()) or space
    if space == "RGB" and image.mode in {"RGB", "L"}:
        if name.startswith("sRGB"):
            return image.convert("RGB")
        image = image.convert("RGB")
    elif {"GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space) != image.mode:
        raise ValueError(f"it is for {space}, the image is {image.mode}")
    result = _transformed(image, profile)
    said.conversions.append(f"colours converted from {name}")
    return result


def _transformed(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    result = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert result is not None  # it is None only for inPlace=True
    return result


def _scaled_to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as L: scaled, where Pillow's own conversion clips at 255."""
    import numpy as np

    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise NoDefinedWhite("32-bit pixels have no defined white")
    grey = Image.fromarray(((values.astype(np.uint32) * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8))
    if icc := image.info.get("icc_profile"):
        grey.info["icc_profile"] = icc
    return grey


def _alpha(image: Image.Image) -> Image.Image | None:
    """Opacity as mode L, or None where everything is opaque. Palette and colour-key transparency count."""
    if not image.has_transparency_data:
        return None
    if image.mode in _SIXTEEN_BIT_MODES:
        import numpy as np

        opaque = np.asarray(image) != image.info["transparency"]
        return Image.fromarray((opaque * 255).astype(np.uint8))
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha
