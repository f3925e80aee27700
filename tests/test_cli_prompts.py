"""Prompts from the command line and from files; triggers."""

from __future__ import annotations

from pathlib import Path

import pytest

from brushset.cli.inference.prompts import Prompt, emphasised, missing_triggers, read_prompts, with_triggers
from brushset.errors import UsageError


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    return path


def test_a_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    file = written(tmp_path, b"\xef\xbb\xbf# my list\r\na girl\r\n\r\n  a lake, #1  \r\n")
    assert read_prompts(["a cat"], [file]) == [Prompt("a cat"), Prompt("a girl"), Prompt("a lake, #1")]


def test_a_line_may_be_as_a1111_has_it(tmp_path: Path) -> None:
    file = written(tmp_path, b'--prompt "a girl\'s hat, red" --negative_prompt "blurry, bad" --seed 7\n--prompt "x"\n')
    assert read_prompts([], [file]) == [Prompt("a girl's hat, red", "blurry, bad", 7), Prompt("x")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "holds no prompt"),
        (b"\xef\xbb\xbf\n# nothing\n", "holds no prompt"),
        (b"caf\xe9\n", r"not UTF-8 text \(byte 3\)"),
        (b"\xff\xfea\x00", "not UTF-8"),
        (b"a\x00b", "no text"),
        (b'ok\n--prompt "x" --steps 3\n', r"line 2: --steps is not read from a file"),
        (b'--prompt "x\n', "line 1: No closing quotation"),
        (b"--seed 3\n", "line 1: no --prompt"),
        (b'--prompt "x" --seed many\n', "a whole number"),
        (b"a girl <lora:anime:0.6>\n", r"--loras anime:0\.6"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        read_prompts([], [written(tmp_path, data)])


def test_all_findings_are_told_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, b"--seed 1\n--prompt x --steps 2\n")
    with pytest.raises(UsageError) as refused:
        read_prompts(["", "a"], [file, tmp_path / "none.txt"])
    assert len(str(refused.value).splitlines()) == 4


def test_no_prompt_at_all_says_how_to_give_one() -> None:
    with pytest.raises(UsageError, match="--prompts-file FILE"):
        read_prompts([], [])


def test_missing_triggers_are_put_in_front_once() -> None:
    assert with_triggers("a cat", ["anistyle", "wcstyle", "anistyle", ""]) == "anistyle, wcstyle, a cat"
    assert with_triggers("anistyle, a cat", ["anistyle"]) == "anistyle, a cat"


@pytest.mark.parametrize(
    ("prompt", "stands"),
    [
        ("an anistylesque cat", False), ("xanistyle", False), ("anistyle2", False), ("ani style", False),
        ("AniStyle cat", True), ("a cat,anistyle", True), ("(anistyle:1.2)", True), ("anistyle", True),
    ],
)  # fmt: skip
def test_a_trigger_stands_there_as_a_word_of_its_own(prompt: str, stands: bool) -> None:
    assert (missing_triggers(prompt, ["anistyle"]) == []) is stands


def test_a_trigger_may_hold_what_a_pattern_would_read() -> None:
    assert missing_triggers("in the  style of c++ (x)", ["style of c++ (x)"]) == []
    assert missing_triggers("in the style of c", ["style of c++"]) == ["style of c++"]


def test_a1111s_emphasis_is_seen() -> None:
    assert emphasised([Prompt("a (red:1.3) hat, ((wow)), [cat:dog:0.5]")]) == ["(red:1.3)", "((wow))", "[cat:dog:0.5]"]
    assert emphasised([Prompt(r"a cat (sitting) \(sic:1\) [now]")]) == []
