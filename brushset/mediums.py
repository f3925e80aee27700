"""How captioners name a medium or a drawn style: what goes from machine captions by default.

"painting of", not "painting": a girl painting a fence is content, and so is a painting on a wall. Nouns that follow one
of these words go with it (brushset.captions.style_words): "watercolor" takes "watercolor painting" along.
"""

from __future__ import annotations

# fmt: off
STYLE_WORDS: tuple[str, ...] = (
    "painting of", "drawing of", "illustration of", "sketch of", "picture of", "image of", "photo of", "photograph of",
    "rendering of", "render of", "artwork of", "depiction of", "illustration", "artwork", "art style", "digital art",
    "digital painting", "digital drawing", "concept art", "vector art", "clip art", "clipart", "line art", "lineart",
    "pixel art", "fan art", "cel shading", "cel shaded", "flat design", "3d render", "watercolor", "watercolour",
    "gouache", "oil painting", "acrylic painting", "pastel drawing", "pencil drawing", "pencil sketch",
    "charcoal drawing", "ink drawing", "pen and ink", "anime", "manga", "cartoon", "cartoonish",
    "storybook illustration", "traditional media",
)
# fmt: on
