"""Claims about reading TOMLs that people wrote: what sd-scripts' parser refuses is explained, with line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from brushset.kohya.check.user_toml import UserToml, key_lines, read_user_toml


def read(folder: Path, content: str | bytes) -> UserToml:
    path = folder / "user.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_user_toml(path, "user.toml")


def test_a_byte_order_mark_in_front_of_a_key_silently_loses_the_key(tmp_path: Path) -> None:
    import toml

    assert list(toml.loads("\ufefflearning_rate = 1\n")) == ["\ufefflearning_rate"]  # what sd-scripts would see
    made = read(tmp_path, "\ufefflearning_rate = 1\n")
    (finding,) = made.findings
    assert (finding.severity, finding.line) == ("wrong", 1)
    assert 'the first key is not "learning_rate" to sd-scripts but another one: it is ignored' in finding.effect
    assert "without a byte-order mark" in finding.fix
    assert made.tables == {"learning_rate": 1}


@pytest.mark.parametrize("text", ["\ufeff# comment\na = 1\n", "\ufeff[general]\na = 1\n"])
def test_a_byte_order_mark_elsewhere_stops_sd_scripts(tmp_path: Path, text: str) -> None:
    import toml

    with pytest.raises(toml.TomlDecodeError):
        toml.loads(text)
    (finding,) = read(tmp_path, text).findings
    assert "it begins with a byte-order mark" in finding.text
    assert "stops at the first character" in finding.effect


@pytest.mark.parametrize(
    ("text", "line", "told", "fix"),
    [
        ('a = 1\nd = "C:\\images"\n', 2, "at column 10: a backslash in double quotes", "d = 'C:\\images'"),
        ('d = "C:\\Users\\x"\n', 1, "a backslash in double quotes begins an escape", "forward slashes"),
        ('d = ["C:\\x"]\n', 1, "a backslash in double quotes", "single quotes, or forward slashes"),
        ("a = 1\nb = 2\na = 3\n", 3, "a = 3 stands here a second time", "one of them"),
        ("[x]\na = 1\n[x]\nb = 2\n", 3, "[x] stands here a second time", "one of them"),
        ("a = “x”\n", 1, "at column 5: curly quotes", 'straight ones: "'),
        ("a = [1, 2.0]\n", 1, "an array mixes types", "all numbers with a point"),
        ("a = True\n", 1, "True is written in lower case", "a = true"),
        ("a = None\n", 1, "TOML has no None", "leave a out"),
        ("a = hello\n", 1, "text stands in quotes", 'a = "hello"'),
        ("a = C:/x\n", 1, "text stands in quotes", 'a = "C:/x"'),
        ("a = 1,\n", 1, "a comma ends the line", "a = 1"),
        ('a = "x\n', 1, "a quote is not closed", 'close it: "x …'),
        ("a =\n", 1, "nothing stands behind the equals sign of a", "a = …"),
        ("a = .5\n", 1, "a number begins with a digit", "a = 0.5"),
        ("a = 5%\n", 1, "a share is written as a number", "a = 5e-2"),
        ("// no\na = 1\n", 1, "// begins no comment", "#"),
        ("job: extension\nconfig:\n", 1, "a colon: this is YAML", "key = value"),
        ('{"a": 1,}\n', 1, "this looks like JSON", "key = value"),
        ("hello\n", 1, "there is no key = value in it", "TOML"),
    ],
)
def test_what_cannot_be_read_is_explained(tmp_path: Path, text: str, line: int, told: str, fix: str) -> None:
    made = read(tmp_path, text)
    (finding,) = made.findings
    assert made.tables == {}
    assert finding.line == line
    assert told in finding.text
    assert fix in finding.fix
    assert finding.effect == "sd-scripts stops"


def test_other_encodings_are_named(tmp_path: Path) -> None:
    (wide,) = read(tmp_path, "a = 1\n".encode("utf-16")).findings
    assert "UTF-16" in wide.text
    (narrow,) = read(tmp_path, b'a = 1\nb = "\xe4"\n').findings
    assert (narrow.line, narrow.text) == (2, "byte 0xe4 at column 6 is no UTF-8")


def test_a_backslash_that_is_silently_an_escape_is_wrong(tmp_path: Path) -> None:
    made = read(tmp_path, 'train_data_dir = "D:\\train\\new"\n')
    (finding,) = made.findings
    assert finding.path == ("train_data_dir",)
    assert 'train_data_dir = "D:\\train\\new" has a control character in it' in finding.text
    assert finding.fix == "single quotes: 'D:\\train\\new'"
    assert read(tmp_path, 'metadata_description = "two\\nlines"\n').findings == []


def test_json_is_read_as_what_it_is(tmp_path: Path) -> None:
    made = read(tmp_path, '{"LoRA_type": "Standard"}')
    assert made.content == {"LoRA_type": "Standard"}
    assert made.findings == []


def test_keys_know_their_lines() -> None:
    text = (
        "top = 1\n[general]\n# c\nkeep_tokens = 1\n[[datasets]]\nresolution = 512\n  [[datasets.subsets]]\n  image_dir = 'a'\n"
        "  [[datasets.subsets]]\n  image_dir = 'b'\n[[datasets]]\nargs = [\n 'x = 1',\n]\n'quoted' = 1\n[[datasets.subsets]]\n"
        'text = """\nlike = a key\n"""\nlast = 1\n'
    )
    lines = key_lines(text)
    assert lines["top",] == 1
    assert lines["general", "keep_tokens"] == 4
    assert lines["datasets", 0, "resolution"] == 6
    assert lines["datasets", 0, "subsets", 0, "image_dir"] == 8
    assert lines["datasets", 0, "subsets", 1, "image_dir"] == 10
    assert lines["datasets", 1, "args"] == 12
    assert lines["datasets", 1, "quoted"] == 15
    assert lines["datasets", 1, "subsets", 0, "last"] == 20
    assert not any("like" in place or "x" in place for place in lines)


def test_what_reads_well_has_no_findings(tmp_path: Path) -> None:
    made = read(tmp_path, "a = 1e-4\r\nb = 'C:\\data\\'\r\n[t]\r\nc = [\r\n  \"x=1\", # note\r\n]\r\n")
    assert made.findings == []
    assert made.tables == {"a": 1e-4, "b": "C:\\data\\", "t": {"c": ["x=1"]}}
    assert made.line_of(("t", "c")) == 4
    assert made.line_of(("t", "nowhere")) == 3
