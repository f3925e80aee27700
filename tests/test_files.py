"""Files appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from brushset.errors import UsageError
from brushset.files import merge_folder, publish_folder, read_json, read_toml, sha256_json, write_atomic
from brushset.paths import PROJECT


def test_a_write_replaces_the_old_content_and_leaves_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a b\nc.txt"
    write_atomic(target, "old")
    write_atomic(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path: Path) -> None:
    target = tmp_path / "kept.txt"
    target.write_text("old")
    code = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "from pathlib import Path; from brushset.files import write_atomic; from brushset.errors import EnvironmentProblem\n"
        "try: write_atomic(Path(sys.argv[2]), 'x' * 1000)\n"
        "except EnvironmentProblem as error: sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(PROJECT), str(target)], check=False)
    assert done.returncode == 4
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_publishing_replaces_a_folder(tmp_path: Path) -> None:
    for name, text in (("final", "old"), ("tmp", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{text}.txt").write_text(text)
    publish_folder(tmp_path / "tmp", tmp_path / "final")
    assert [path.name for path in (tmp_path / "final").iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_merging_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    (tmp_path / "final/image.png").write_text("image")
    (tmp_path / "tmp/deep").mkdir(parents=True)
    (tmp_path / "tmp/deep/image.txt").write_text("caption")
    merge_folder(tmp_path / "tmp", tmp_path / "final")
    assert (tmp_path / "final/image.png").is_file()
    assert (tmp_path / "final/deep/image.txt").read_text() == "caption"
    assert not (tmp_path / "tmp").exists()


def test_a_byte_order_mark_does_not_break_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_toml(path) == {"a": 1}


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_a_file_that_does_not_parse_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.json"):
        read_json(path)


def test_equal_values_have_equal_digests_whatever_their_order() -> None:
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})
