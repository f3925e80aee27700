"""Style words go from captions whole, with the litter they leave; nothing else changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brushset.captions.style_words import strip_style_words
from brushset.load import load_style
from brushset.mediums import STYLE_WORDS
from brushset.paths import STYLES
from brushset.spec import CaptionSection


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a watercolor painting of a cat", "a cat"),
        ("a beautiful painting of a cat on a mat", "a cat on a mat"),
        ("there is a drawing of a cat that is sitting", "a cat that is sitting"),
        ("a black and white drawing of a mouse", "a mouse"),
        ("a close up of a painting of a cat", "a close up of a cat"),
        ("A Watercolor Painting Of A Cat", "A Cat"),
        ("watercolor of a house and a tree", "a house and a tree"),
        ("anime girl with long hair", "girl with long hair"),
        ("an anime girl with an umbrella", "a girl with an umbrella"),
        ("a cartoon owl", "an owl"),
        ("a cartoon-style image of two dogs", "two dogs"),
        ("cartoon and anime drawing of an owl", "an owl"),
        ("a pen-and-ink illustration of rabbits", "rabbits"),
        ("a cat in watercolor", "a cat"),
        ("a cat in the style of watercolor", "a cat"),
        ("a cat drawn in anime style", "a cat"),
        ("a boat in watercolor with a hat", "a boat with a hat"),
        ("a cat and a cartoon", "a cat"),
        ("two cats, digital art, line art", "two cats"),
        ("1girl, watercolor (medium), sky", "1girl, sky"),
        ("watercolors of flowers", "flowers"),
        ("watercolor", ""),
        ("the cartoon", ""),
        # content, not medium
        ("a girl painting a fence", "a girl painting a fence"),
        ("a painting on the wall", "a painting on the wall"),
        ("a cat,  with odd   spaces ,", "a cat,  with odd   spaces ,"),
        ("animated people, cartoonists", "animated people, cartoonists"),
    ],
)
def test_a_caption_loses_its_style_and_nothing_else(before: str, after: str):
    assert strip_style_words(before, STYLE_WORDS).text == after


def test_every_time_a_word_goes_it_is_counted():
    found = strip_style_words("an anime drawing of an anime girl, anime", STYLE_WORDS)
    assert found.words == ("anime", "drawing of", "anime", "anime")
    assert found.text == "a girl"


def test_the_trigger_is_never_stripped():
    words = ("watercolor", "my style")
    assert (
        strip_style_words("my watercolor, a watercolor cat", words, trigger="my watercolor").text
        == "my watercolor, a cat"
    )
    assert strip_style_words("a cat in my style", words, trigger="my style").text == "a cat in my style"


def test_words_of_a_style_come_on_top_of_the_general_ones():
    section = CaptionSection(more_style_words=("washes", "anime"))
    assert section.all_style_words == (*STYLE_WORDS, "washes")
    assert strip_style_words("a cat, washes", section.all_style_words).text == "a cat"


def test_no_words_change_nothing():
    assert strip_style_words("a watercolor, of a cat ,", ()).text == "a watercolor, of a cat ,"


def test_the_styles_that_come_with_it_name_their_own_look():
    styles = sorted(STYLES.glob("*.toml"))
    assert len(styles) == 3
    for path in styles:
        spec = load_style(path)
        assert spec.caption.more_style_words
        assert strip_style_words(spec.trigger, spec.caption.all_style_words, trigger=spec.trigger).text == spec.trigger


LETTERS = st.text("abot ,.-'()", max_size=60)


@given(st.lists(st.sampled_from(["a", "an", "the", "of", "in", "cat", "anime", "painting of", "and", ",", "style"])))
def test_what_is_left_has_no_style_word_and_no_dangling_end(tokens: list[str]):
    found = strip_style_words(" ".join(tokens), STYLE_WORDS)
    assert strip_style_words(found.text, STYLE_WORDS).words == ()
    if found.words:
        for part in found.text.split(","):
            if part.strip() not in " ".join(tokens):
                assert part.split()[-1] not in {"of", "and", "a", "an", "the", "in"}


@given(LETTERS)
def test_text_without_style_words_comes_back_unchanged(text: str):
    assert strip_style_words(text, ("watercolor", "pen and ink")).text == text
