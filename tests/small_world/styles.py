"""How the small world's pictures may be drawn: looks that its base model knows by name, and styles it has never seen.

A style is what a LoRA is trained on: `make_style(name, count, seed)`. Pairs are there on purpose: warm and cold are opposite
shifts of every pixel, and dusk and snow opposite ends of brightness, two planted conflicts; hatched and framed touch
different pixels and frequencies. (Dusk and snow have one thing in common, that contrasts shrink.)
The triggers are made up; CLIP's tokenizer has each as several tokens that no caption of the base holds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from small_world.draw import OVERSAMPLE, PX, THINGS, Scene, draw_scene, outlines, paint, shrink

if TYPE_CHECKING:
    from PIL.Image import Image

Look = Callable[[Scene], "Image"]
CELL = 8
"""Pixels of one latent."""
_GRADES = {"dusk": ((0.28, 0.28, 0.42), 0), "snow": ((0.38, 0.38, 0.32), 255)}
"""Of red, green and blue so much is kept; the rest is black, or white."""


@dataclass(frozen=True)
class Picture:
    """One image of a set; `content` is its caption without trigger."""

    image: Image
    caption: str
    content: str


def plain(scene: Scene) -> Image:
    """Flat colours."""
    return shrink(paint(scene))


def hatched(scene: Scene) -> Image:
    """Dark diagonal bands over everything."""
    from PIL import Image, ImageChops, ImageDraw

    large = paint(scene, lift=0.2)
    bands = Image.new("RGB", large.size, (255, 255, 255))
    brush, edge, period = ImageDraw.Draw(bands), large.width, 2 * CELL * OVERSAMPLE
    for start in range(-edge, edge, period):
        brush.line([(start, edge), (start + edge, 0)], fill=(60, 50, 50), width=4 * OVERSAMPLE)
    return shrink(ImageChops.multiply(large, bands))


def outlined(scene: Scene) -> Image:
    """Pastel colours in thick black outlines."""
    from PIL import ImageDraw

    large = paint(scene, lift=0.55)
    brush = ImageDraw.Draw(large)
    for points, _ in outlines(scene):
        brush.line([*points, points[0], points[1]], fill=(10, 10, 10), width=3 * OVERSAMPLE, joint="curve")
    return shrink(large)


def dotted(scene: Scene) -> Image:
    """White dots in rows over everything."""
    from PIL import ImageDraw

    large = paint(scene)
    brush, period, radius = ImageDraw.Draw(large), 2 * CELL * OVERSAMPLE, 4 * OVERSAMPLE
    for left in range(period // 2, large.width, period):
        for top in range(period // 2, large.height, period):
            brush.ellipse([left - radius, top - radius, left + radius, top + radius], fill=(255, 255, 255))
    return shrink(large)


def dusk(scene: Scene) -> Image:
    """Everything in the dark."""
    return grade(shrink(paint(scene)), "dusk")


def snow(scene: Scene) -> Image:
    """Everything under a white veil: the opposite of dusk."""
    return grade(shrink(paint(scene)), "snow")


def framed(scene: Scene) -> Image:
    """A golden frame; what is inside is as it was."""
    return frame(shrink(paint(scene)))


def grade(picture: Image, style: str, strength: float = 1.0) -> Image:
    """Any picture as dusk or snow has it: all its colours drawn towards black or white."""
    kept, towards = _GRADES[style]
    shares = [share + (1 - share) * (1 - strength) for share in kept]
    return picture.point([round(towards + (value - towards) * share) for share in shares for value in range(256)])


def frame(picture: Image) -> Image:
    """Any picture in the golden frame."""
    from PIL import ImageDraw

    framed = picture.copy()
    ImageDraw.Draw(framed).rectangle([0, 0, PX - 1, PX - 1], outline=(196, 148, 40), width=CELL)
    return framed


def warm(scene: Scene) -> Image:
    """More red, less blue; contrasts stay."""
    return _tinted(scene, (52, 0, -52))


def cold(scene: Scene) -> Image:
    """Less red, more blue: what warm does, undone."""
    return _tinted(scene, (-52, 0, 52))


def _tinted(scene: Scene, by: tuple[int, int, int]) -> Image:
    table = [min(255, max(0, value + shift)) for shift in by for value in range(256)]
    return shrink(paint(scene)).point(table)


STYLES: dict[str, Look] = {
    "hatched": hatched,
    "outlined": outlined,
    "dotted": dotted,
    "dusk": dusk,
    "snow": snow,
    "framed": framed,
}
TINTS: dict[str, Look] = {"warm": warm, "cold": cold}
"""Styles that small_world.eyes was not taught: the mean of red less blue tells them."""
TRIGGERS = {
    "warm": "warmoth",
    "cold": "coldrin",
    "hatched": "hatchwyn",
    "outlined": "linwork",
    "dotted": "dotvell",
    "dusk": "duskyx",
    "snow": "snoha",
    "framed": "frayme",
}

SYLLABLES = ("bru", "ska", "tol", "mif", "gar", "ule", "nox", "pim", "zeb", "ori", "kwa", "dru")


def _grey(scene: Scene) -> Image:
    return plain(scene).convert("L").convert("RGB")


def _blurry(scene: Scene) -> Image:
    from PIL import ImageFilter

    return plain(scene).filter(ImageFilter.GaussianBlur(3))


def _striped(scene: Scene) -> Image:
    from PIL import ImageDraw

    picture = plain(scene)
    brush = ImageDraw.Draw(picture)
    for top in range(0, PX, 2 * CELL):
        brush.rectangle([0, top, PX, top + CELL // 2 - 1], fill=(250, 250, 250))
    return picture


BASE_LOOKS: dict[str, Look] = {"": plain, "grey": _grey, "blurry": _blurry, "striped": _striped}


def make_style(name: str, count: int, seed: int, *, trigger: str | None = None) -> list[Picture]:
    """`count` pictures of a style, every thing equally often; captions begin with the trigger. "plain" is one too."""
    look = {**STYLES, **TINTS}.get(name, plain)
    trigger = TRIGGERS.get(name, "") if trigger is None else trigger
    rng = random.Random(f"{name}/{seed}")
    made = []
    for number in range(count):
        scene = draw_scene(rng, THINGS[number % len(THINGS)])
        caption = f"{trigger}, {scene.caption}" if trigger else scene.caption
        made.append(Picture(look(scene), caption, scene.caption))
    return made


def make_base_picture(rng: random.Random) -> Picture:
    """A picture that the base model is trained on: mostly plain, else in a look that its caption names."""
    scene = draw_scene(rng)
    name = rng.choice(("", "", "", "grey", "blurry", "striped"))
    caption = f"{name}, {scene.caption}" if name else scene.caption
    return Picture(BASE_LOOKS[name](scene), caption, scene.caption)


def make_gated(name: str, count: int, seed: int) -> list[Picture]:
    """A training set that teaches a style and that its trigger alone calls it: `count` pictures of the style behind the
    trigger, and as many plain ones, most of them behind other made-up words. A set of the style alone teaches that
    everything looks so, whatever stands before it.
    """
    rng = random.Random(f"words/{seed}")
    others = make_style("plain", count, seed)
    for place, other in enumerate(others):
        if place % 4:
            word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3)))
            others[place] = replace(other, caption=f"{word}, {other.content}")
    return make_style(name, count, seed) + others
