"""The house as ARCHITECTURE.md draws it."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from brushset.paths import PROJECT

ROOMS = ("brushset", "eval", "webui_export")


def sources() -> list[Path]:
    found = [PROJECT / "orchestrate.py"]
    for room in ROOMS:
        found += sorted((PROJECT / room).rglob("*.py"))
    return found


def test_importing_the_front_door_leaves_torch_out() -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'cv2', 'matplotlib', 'sklearn', 'skimage'}"
    code = f"import sys, orchestrate; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_nothing_imports_the_front_door() -> None:
    files = sources()
    assert len(files) > 50
    for path in files[1:]:
        imported = {
            name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for name in (
                [alias.name for alias in node.names] if isinstance(node, ast.Import)
                else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )
        }  # fmt: skip
        assert "orchestrate" not in imported, path


def test_only_the_front_door_prints() -> None:
    for path in sources()[1:]:
        if (PROJECT / "brushset" / "cli") in path.parents:
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert not [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"], path


def test_rooms_import_only_from_rooms_below() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert program is not None, "import-linter is part of the dev group"
    answer = subprocess.run([program, "--no-cache"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("name", ["vendor/sd-scripts", "dataset_configs", "styles", "eval", "webui_export", "tests"])
def test_the_folders_that_the_user_fixed_are_there(name: str) -> None:
    assert (PROJECT / name).is_dir() or name == "vendor/sd-scripts"


def test_the_submodule_is_pinned_to_the_version_that_was_measured() -> None:
    git = shutil.which("git")
    if git is None or not (PROJECT / ".git").exists():
        pytest.skip("not a git checkout")
    answer = subprocess.run(
        [git, "ls-files", "-s", "vendor/sd-scripts"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split()[:2] == ["160000", "ae72efb92babe89ff8e70f057e42db68440e8d61"]
