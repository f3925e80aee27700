"""The report's part on captions says what was taken out of them and what was found."""

from __future__ import annotations

from brushset.page.captions import captions_part
from brushset.page.template import render_page
from brushset.records import Caption, CaptionFinding, Captions, Prepared, PreparedImage

IMAGES = tuple(
    PreparedImage(
        name=f"{index}.png", source=f"my <cat> {index}.jpg", source_sha256="", width_px=64, height_px=64, upscaled_by=1
    )
    for index in range(4)
)
TEXTS = (
    ("wcstyle, a cat", "a watercolor painting of a cat", "blip", ("watercolor", "painting of"), 4),
    ("wcstyle, a cat", "a watercolor painting of a cat", "blip", ("watercolor", "painting of"), 4),
    ("wcstyle, a <b>dog</b>, sky", "a <b>dog</b>, sky", "sidecar", (), 9),
    ("wcstyle", "", "edited", (), 2),
)
CAPTIONS = Captions(
    captioner="blip", trigger="wcstyle", weights="blip@353689b", token_limit=75, kept_style_words={"anime": 2},
    captions=tuple(
        Caption(image=image.name, text=text, said=said, source=source, stripped=stripped, tokens=tokens)
        for image, (text, said, source, stripped, tokens) in zip(IMAGES, TEXTS, strict=True)
    ),
    findings=(CaptionFinding(level="warning", code="equal", text="2 of 4 are the same", images=("0.png", "gone.png")),),
)  # fmt: skip
PREPARED = Prepared(images=IMAGES[:3], heldout=IMAGES[3:], skipped={})


def test_what_was_taken_is_counted_and_shown_once_before_and_after():
    part = captions_part(CAPTIONS, PREPARED)
    assert (part.count, part.led, part.changed) == (4, 4, 2)
    assert part.stripped == {"watercolor": 2, "painting of": 2}
    assert part.examples == (("wcstyle, a watercolor painting of a cat", "wcstyle, a cat"),)
    assert part.tokens == (2, 4, 9)
    assert part.parts == {"a cat": 2}
    assert dict(part.sources) == {"blip": 2, "sidecar": 1, "edited": 1}


def test_findings_name_the_users_files():
    assert captions_part(CAPTIONS, PREPARED).findings[0].images == ("my <cat> 0.jpg", "gone.png")


def test_the_page_holds_all_of_it_escaped():
    template = "captions.html.j2"
    page = render_page(template, {"captions": captions_part(CAPTIONS, PREPARED), "bar": lambda share: f"[{share:.2f}]"})
    for text in (
        "4 of 4",
        "watercolor 2×",
        "blip@353689b",
        "2 of 4 are the same",
        "my &lt;cat&gt; 0.jpg",
        "anime 2×",
        "[0.50]",
    ):
        assert text in page
    assert "<b>dog" not in page


def test_no_captions_are_shown_as_none():
    empty = Captions(captioner="trigger-only", trigger="wcstyle", captions=())
    part = captions_part(empty, PREPARED)
    assert (part.count, part.led, part.tokens) == (0, 0, (0, 0, 0))
