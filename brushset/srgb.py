"""How the pixels of any image become upright 8-bit RGB in sRGB, with no transparency and no metadata left.

What cannot be known is guessed in the usual way and said: an orientation or a colour profile that does not parse.
What would be a wild guess (the white of floating-point pixels) is refused.
"""

from __future__ import annotations

import io

from PIL import Image, ImageCms, ImageOps

_ORIENTATION_TAG = 0x0112
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})


def to_srgb(image: Image.Image, background: str) -> tuple[Image.Image, str]:
    """The first frame as RGB: EXIF rotation applied, 16 bits scaled to 8, colours brought to sRGB by the embedded
    profile, transparency laid over `background` (such as "#ffffff"); and what had to be guessed, "" where nothing.

    Raises:
        ValueError: floating-point or 32-bit pixels; and whatever Pillow raises on a damaged file.
    """
    upright, note = _upright(image)
    colour, colour_note = _colour(upright)
    # A new image, so that no metadata comes along.
    result = Image.new("RGB", colour.size, background)
    result.paste(colour, mask=_alpha(upright))
    return result, "; ".join(text for text in (note, colour_note) if text)


def _upright(image: Image.Image) -> tuple[Image.Image, str]:
    try:
        turned = image.getexif().get(_ORIENTATION_TAG, 1) != 1
        return (ImageOps.exif_transpose(image) if turned else image), ""
    except Exception:  # noqa: BLE001 - broken EXIF raises anything; the pixels are sound, so they are kept as they lie
        return image, "EXIF is broken: orientation unknown, taken as it lies"


def _colour(image: Image.Image) -> tuple[Image.Image, str]:
    """Colour without alpha, as mode RGB in sRGB, and what was guessed."""
    if image.mode in _SIXTEEN_BIT_MODES:
        image = _scaled_to_8_bit(image)
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no defined white")
    icc = image.info.get("icc_profile")
    flat = _without_palette(image)
    if icc:
        try:
            return _from_profile(flat, bytes(icc)), ""
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            return flat.convert("RGB"), f"colour profile not usable ({error}): taken as sRGB"
    if flat.mode == "LAB":
        return _transformed(flat, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))), ""
    note = "CMYK without a colour profile: colours are approximate" if flat.mode == "CMYK" else ""
    return flat.convert("RGB"), note


def _without_palette(image: Image.Image) -> Image.Image:
    """In a mode that a colour profile can speak of: L, RGB, CMYK or LAB; alpha is dropped."""
    if image.mode in {"L", "RGB", "CMYK", "LAB"}:
        return image
    return image.convert("RGBA").convert("RGB") if image.mode in {"P", "PA"} else image.convert("RGB")


def _from_profile(image: Image.Image, icc: bytes) -> Image.Image:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = profile.profile.xcolor_space.strip()
    if space == "RGB" and image.mode in {"RGB", "L"}:
        if ImageCms.getProfileDescription(profile).startswith("sRGB"):
            return image.convert("RGB")
        return _transformed(image.convert("RGB"), profile)
    if {"GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space) == image.mode:
        return _transformed(image, profile)
    raise ValueError(f"it is for {space}, the image is {image.mode}")


def _transformed(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    result = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert result is not None  # it is None only for inPlace=True
    return result


def _scaled_to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as L: scaled, where Pillow's own conversion clips at 255."""
    import numpy as np

    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("32-bit pixels have no defined white")
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
