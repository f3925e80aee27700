"""What is wrong with captions is found before they are trained, and told with the fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from brushset.bases.tokenizer import load_clip_tokenizer
from brushset.captions.checks import CaptionSet, check_captions, count_parts, count_words, find_unreadable
from brushset.captions.effective import CaptionRules
from brushset.records import Caption, CaptionFinding
from brushset.spec import StyleSpec, TrainSection

ENCODE, DECODE = load_clip_tokenizer()


def captions_of(texts: Sequence[str]) -> list[Caption]:
    return [
        Caption(image=f"{index}.png", text=text, source="blip", tokens=len(ENCODE(text)))
        for index, text in enumerate(texts)
    ]


def check(*texts: str, trigger: str = "wcstyle", **rules: Any) -> dict[str, CaptionFinding]:
    found = CaptionSet(captions_of(texts), CaptionRules(trigger=trigger, **rules), ENCODE, DECODE)
    findings = check_captions(found)
    assert all("\n" not in finding.text for finding in findings)
    return {finding.code: finding for finding in findings}


GOOD = ("wcstyle, a cat on a mat, sleeping", "wcstyle, a red house", "wcstyle, two boats at sea")


def test_good_captions_are_let_pass_without_a_word():
    assert check(*GOOD) == {}
    assert check(*GOOD, shuffle_caption=True) == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"wcstyle, a cat\n", ""),
        ("wcstyle, caf\u00e9 \U0001f3a8".encode(), ""),
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"\xef\xbb\xbfwcstyle\n", "byte-order mark"),
        (b"caf\xe9\n", "not UTF-8"),
        (b"wcstyle\na cat\n", "2 lines"),
        (b"wcstyle\r\na cat", "2 lines"),
        (b"\nwcstyle\n", "2 lines"),
        (b"wcstyle\x00\n", r"\x00"),
        (b"wcstyle\ta cat\n", r"\t"),
        ("wcstyle\u2028a cat\n".encode(), r"\u2028"),
    ],
)
def test_files_are_one_line_of_utf8_without_marks(content: bytes, reason: str):
    errors = find_unreadable({"a.png": content})
    assert len(errors) == bool(reason)
    assert all(reason in error and "a.png" in error and "fix:" in error for error in errors)


def test_a_missing_trigger_is_an_error_that_counts():
    finding = check(*GOOD, "a dog", "my wcstyle, a dog")["trigger-missing"]
    assert finding.level == "error"
    assert '2 of 5 captions: "a dog"' in finding.text
    assert finding.images == ("3.png", "4.png")


@pytest.mark.parametrize(
    ("rules", "moves"),
    [
        ({"shuffle_caption": True, "keep_tokens": 0}, True),
        ({"shuffle_caption": True, "keep_tokens": 1}, False),
        ({"shuffle_caption": False, "keep_tokens": 0}, False),
        ({"caption_tag_dropout_rate": 0.1, "keep_tokens": 0}, True),
        ({"token_warmup_step": 0.5, "keep_tokens": 0}, True),
        ({"shuffle_caption": True, "caption_separator": ";"}, False),
        ({"shuffle_caption": True, "trigger": "my style"}, False),
        ({"shuffle_caption": True, "trigger": "my style", "caption_separator": " "}, True),
        ({"shuffle_caption": True, "trigger": "my style", "caption_separator": " ", "keep_tokens": 2}, True),
        ({"shuffle_caption": True, "caption_prefix": "best quality,"}, True),
        ({"shuffle_caption": True, "caption_prefix": "best quality,", "keep_tokens": 2}, True),
        ({"shuffle_caption": True, "keep_tokens": 0, "keep_tokens_separator": "|||"}, True),
    ],
)
def test_keep_tokens_is_held_against_the_trigger_in_parts(rules: dict[str, Any], *, moves: bool):
    trigger = rules.get("trigger", "wcstyle")
    found = check(f"{trigger}, a cat, sleeping, red", f"{trigger}, dog, tree", **rules)
    assert ("trigger-moves" in found) is moves
    assert all(finding.level == "error" for code, finding in found.items() if code == "trigger-moves")


def test_the_kept_separator_keeps_the_trigger():
    rules: dict[str, Any] = {"shuffle_caption": True, "keep_tokens": 0, "keep_tokens_separator": "|||"}
    assert "trigger-moves" not in check("wcstyle, ||| a cat, sleeping", **rules)


def test_a_prefix_before_the_trigger_is_told_even_where_nothing_is_shuffled():
    finding = check(*GOOD, caption_prefix="masterpiece,")["trigger-pushed"]
    assert finding.level == "warning"
    assert '"masterpiece, wcstyle, a cat on a mat, sleeping"' in finding.text


def test_shuffling_that_shuffles_nothing_is_told():
    assert "nothing-to-shuffle" in check("wcstyle, a cat", "wcstyle, a dog", shuffle_caption=True)
    assert "keep-tokens" in check(*GOOD, "wcstyle, a, b, c, d", shuffle_caption=True, keep_tokens=2)


@pytest.mark.parametrize(("limit", "fix"), [(75, "150"), (150, "225"), (225, "shorten")])
def test_what_lies_behind_the_limit_is_shown(limit: int, fix: str):
    text = "wcstyle, " + " ".join(["dog"] * (limit - 3)) + " zebra at sunset"
    assert len(ENCODE(text)) == limit + 3
    finding = check(*GOOD, text, max_token_length=limit)["too-long"]
    assert '"… zebra at sunset"' in finding.text or '"… at sunset"' in finding.text or "sunset" in finding.text
    assert f"({limit + 3} tokens)" in finding.text
    assert fix in finding.text
    exactly = "wcstyle, " + " ".join(["dog"] * (limit - 3))
    assert len(ENCODE(exactly)) == limit
    assert "too-long" not in check(*GOOD, exactly, max_token_length=limit)


def test_many_equal_captions_are_a_captioner_that_failed():
    finding = check(*["wcstyle, a white background"] * 9, *GOOD)["equal"]
    assert finding.level == "warning"
    assert '9 of 12 captions are the same: "wcstyle, a white background"' in finding.text


def test_a_few_equal_captions_are_advice():
    found = check(*GOOD, *[f"wcstyle, thing {chr(97 + index)}" for index in range(20)], "wcstyle, a red house")
    assert found["some-equal"].level == "advice"
    assert "equal" not in found


def test_captions_that_differ_in_small_words_alone_are_flagged():
    found = check(*GOOD, "wcstyle, the cat is on the mat, sleeping")
    assert "near-equal" in found


def test_triggers_alone_are_no_duplicates():
    assert check(*["wcstyle"] * 10) == {}


def test_a_captioner_that_is_stuck_is_noticed():
    assert "stuck" in check(*GOOD, "wcstyle, a cat and a cat and a cat and a cat")
    assert "stuck" in check(*GOOD, "wcstyle, dog dog dog")
    assert "stuck" not in check(*GOOD, "wcstyle, a big big dog")


def test_braces_and_named_wildcards_are_told_by_what_becomes_of_them():
    assert check("wcstyle, a {red|blue} cat")["braces"].level == "warning"
    on = check("wcstyle, a {red|blue} cat", enable_wildcard=True)
    assert (on["wildcards"].level, "braces" in on) == ("advice", False)
    assert check("wcstyle, a __color__ cat")["named-wildcards"].level == "warning"


def test_a_trigger_that_means_something_already_is_told():
    assert "known-trigger" in check("cat, a dog", trigger="cat")
    assert "known-trigger" not in check("wcstyle, a dog")


def test_lost_characters_are_told():
    assert "lost-characters" in check("wcstyle, caf\ufffd")


def test_frequencies_leave_the_trigger_and_small_words_out():
    items = captions_of(["wcstyle, a cat, sky", "wcstyle, the cat and the dog, sky"])
    assert count_parts(items, "wcstyle") == {"sky": 2, "a cat": 1, "the cat and the dog": 1}
    assert count_words(items, "wcstyle") == {"cat": 2, "sky": 2, "dog": 1}


def test_the_rules_come_from_the_style_and_its_extra_options():
    train = TrainSection(shuffle_caption=True, keep_tokens=2, max_token_length=150, extra={"caption_separator": ";"})
    rules = CaptionRules.of(StyleSpec(name="x", trigger="my style", train=train))
    assert (rules.trigger, rules.keep_tokens, rules.shuffle_caption) == ("my style", 2, True)
    assert (rules.caption_separator, rules.max_token_length, rules.takes_apart) == (";", 150, True)
