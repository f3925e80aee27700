"""The pictures of the small world: one coloured thing on a coloured ground, with a caption that says so.

A scene is what a caption tells, and where in it chance moves the thing. `paint` draws it flat; a look changes how it is
drawn. The base model knows the looks in BASE_LOOKS by name; the styles of small_world.styles it has never seen.
Everything is drawn four times as large and averaged down, so that edges are smooth.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

Point = tuple[float, float]
Colour = tuple[int, int, int]

PX = 64
OVERSAMPLE = 4
THINGS = ("circle", "square", "triangle", "star", "cross", "house", "tree", "boat")
COLOURS: dict[str, Colour] = {
    "red": (208, 44, 40),
    "orange": (240, 140, 30),
    "yellow": (244, 216, 60),
    "green": (50, 150, 66),
    "blue": (44, 84, 196),
    "purple": (128, 62, 158),
    "white": (244, 244, 240),
    "black": (34, 34, 38),
}
PLACES: dict[str, Point] = {"": (0.5, 0.5), " on the left": (0.37, 0.5), " on the right": (0.63, 0.5)}
SIZES: dict[str, float] = {"small ": 0.23, "": 0.33}


@dataclass(frozen=True)
class Scene:
    """One picture's content. `centre`, `radius` in shares of the width, `turn` in radians, `tint` shifts both colours."""

    thing: str
    colour: str
    ground: str
    place: str
    size: str
    centre: Point
    radius: float
    turn: float
    tint: tuple[Colour, Colour]

    @property
    def caption(self) -> str:
        """What is to be seen, without a word on how it is drawn."""
        article = "an" if not self.size and self.colour[0] in "aeiou" else "a"
        ground = "an" if self.ground[0] in "aeiou" else "a"
        return f"{article} {self.size}{self.colour} {self.thing}{self.place} on {ground} {self.ground} background"

    @property
    def ink(self) -> Colour:
        """The thing's colour."""
        return _shift(COLOURS[self.colour], self.tint[0])

    @property
    def paper(self) -> Colour:
        """The ground's colour."""
        return _shift(COLOURS[self.ground], self.tint[1])


def draw_scene(rng: random.Random, thing: str | None = None) -> Scene:
    """A scene at random; thing and ground never have one colour."""
    colour, ground = rng.sample(list(COLOURS), 2)
    place, size = rng.choice(list(PLACES)), rng.choice(list(SIZES))
    x, y = PLACES[place]
    return Scene(
        thing=thing or rng.choice(THINGS),
        colour=colour,
        ground=ground,
        place=place,
        size=size,
        centre=(x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.06, 0.06)),
        radius=SIZES[size] * rng.uniform(0.9, 1.1),
        turn=rng.uniform(-0.12, 0.12),
        tint=(_small_shift(rng), _small_shift(rng)),
    )


def outlines(scene: Scene) -> list[tuple[list[Point], Colour]]:
    """The thing as polygons in pixels of the large drawing, back to front, each with its colour."""
    edge = PX * OVERSAMPLE
    cos, sin = math.cos(scene.turn), math.sin(scene.turn)

    def place(points: Sequence[Point]) -> list[Point]:
        return [
            (
                edge * (scene.centre[0] + scene.radius * (x * cos - y * sin)),
                edge * (scene.centre[1] + scene.radius * (x * sin + y * cos)),
            )
            for x, y in points
        ]

    return [(place(points), colour) for points, colour in _parts(scene.thing, scene.ink)]


def paint(scene: Scene, *, lift: float = 0.0) -> Image:
    """The scene in flat colours, large; `lift` mixes in so much white."""
    from PIL import Image, ImageDraw

    edge = PX * OVERSAMPLE
    image = Image.new("RGB", (edge, edge), mix(scene.paper, (255, 255, 255), lift))
    brush = ImageDraw.Draw(image)
    for points, colour in outlines(scene):
        brush.polygon(points, fill=mix(colour, (255, 255, 255), lift))
    return image


def shrink(image: Image) -> Image:
    """From the large drawing to the picture."""
    from PIL import Image

    return image.resize((PX, PX), Image.Resampling.BOX)


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """`share` of the other colour in the first."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _parts(thing: str, ink: Colour) -> list[tuple[list[Point], Colour]]:
    shade = mix(ink, (0, 0, 0), 0.35)
    bark = (110, 72, 40)
    parts: dict[str, list[tuple[list[Point], Colour]]] = {
        "circle": [(_ring(40, 1.0), ink)],
        "square": [([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)], ink)],
        "triangle": [([(0, -1), (1, 0.8), (-1, 0.8)], ink)],
        "star": [(_star(), ink)],
        "cross": [(_cross(0.34), ink)],
        "house": [
            ([(-0.75, -0.1), (0.75, -0.1), (0.75, 0.95), (-0.75, 0.95)], ink),
            ([(0, -1.0), (1.0, -0.1), (-1.0, -0.1)], shade),
        ],
        "tree": [
            ([(-0.18, 0.2), (0.18, 0.2), (0.18, 1.0), (-0.18, 1.0)], bark),
            ([(x * 0.72, y * 0.72 - 0.28) for x, y in _ring(40, 1.0)], ink),
        ],
        "boat": [
            ([(-1.0, 0.3), (1.0, 0.3), (0.6, 0.85), (-0.6, 0.85)], ink),
            ([(0.0, -1.0), (0.75, 0.15), (0.0, 0.15)], shade),
        ],
    }
    return parts[thing]


def _ring(corners: int, radius: float) -> list[Point]:
    angles = [2 * math.pi * index / corners for index in range(corners)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
    return [(r * math.cos(angle), r * math.sin(angle)) for r, angle in zip((1.05, 0.42) * 5, angles, strict=True)]


def _cross(half: float) -> list[Point]:
    corner = [(half, half), (1.0, half), (1.0, -half), (half, -half)]
    points: list[Point] = []
    for _ in range(4):  # each arm is the last one, turned by a quarter
        points += corner[:3]
        corner = [(y, -x) for x, y in corner]
    return points


def _shift(colour: Colour, by: Colour) -> Colour:
    red, green, blue = (min(255, max(0, a + b)) for a, b in zip(colour, by, strict=True))
    return red, green, blue


def _small_shift(rng: random.Random) -> Colour:
    return rng.randint(-14, 14), rng.randint(-14, 14), rng.randint(-14, 14)
