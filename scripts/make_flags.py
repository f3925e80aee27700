"""Writes brushset/kohya/flags.json: every option and dataset key that sd-scripts knows, asked from its own parsers.

    SD_SCRIPTS_DIR=… python -m scripts.make_flags

The parser and the schema are imported in a child process, so that nothing of sd-scripts ever enters ours; only names,
types and choices are kept. A test (marked vendor) makes them anew and compares.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from brushset.errors import BrushsetError, EnvironmentProblem
from brushset.files import write_atomic
from brushset.kohya.flags import FLAGS_FILE
from brushset.kohya.source import find_source
from brushset.process import child_env

ASK = r"""
import contextlib, functools, io, json, sys
sys.path.insert(0, sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()):
    import train_network
    from library.config_util import ConfigSanitizer

def option(action):
    kind = {0: "switch", "*": "list"}.get(action.nargs, "value")
    kinds = {"int": "int", "float": "float", "str": "str", "Path": "str", "int_or_float": "number"}
    name = "bool" if kind == "switch" else kinds[getattr(action.type, "__name__", "str") if action.type else "str"]
    entry = {"kind": kind, "type": name}
    if action.choices is not None:
        entry["choices"] = [choice for choice in action.choices if choice is not None]
    return entry

def schema(value):
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, functools.partial):
        name = value.args[0].__name__
        return f"{name} or pair" if "scalar" in value.func.__name__ else f"pair of {name}"
    return " or ".join(sorted(validator.__name__ for validator in value.validators))

def keys(table):
    return {str(key): schema(value) for key, value in table.items() if str(key) != "subsets"}

sanitizer = ConfigSanitizer(True, True, False, True)
actions = [action for action in train_network.setup_parser()._actions if action.dest != "help"]
print(json.dumps({
    "options": {action.dest: option(action) for action in actions},
    "dataset": {
        "general": keys(sanitizer.general_schema),
        "datasets": keys(sanitizer.db_dataset_schema),
        "subsets": keys(sanitizer.db_subset_schema),
    },
}))
"""


def make_flags(folder: Path, commit: str) -> dict[str, Any]:
    """What the sd-scripts in `folder` accept, stamped with their commit."""
    env = child_env({"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"})
    argv = [sys.executable, "-c", ASK, str(folder)]
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise EnvironmentProblem(f"{folder}: train_network.py cannot be imported:\n{done.stderr[-2000:]}")
    return {"sd_scripts_commit": commit, **json.loads(done.stdout)}


def flags_text(flags: dict[str, Any]) -> str:
    """Sorted JSON, one option a line, so that a new version of sd-scripts shows as a readable diff."""
    options = ",\n".join(
        f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(flags["options"].items())
    )
    levels = ",\n".join(
        f"    {json.dumps(level)}: " + json.dumps(dict(sorted(known.items())), indent=2).replace("\n", "\n    ")
        for level, known in flags["dataset"].items()
    )
    commit = json.dumps(flags["sd_scripts_commit"])
    return f'{{\n  "sd_scripts_commit": {commit},\n  "options": {{\n{options}\n  }},\n  "dataset": {{\n{levels}\n  }}\n}}\n'


def main() -> int:
    """Finds sd-scripts, asks them, writes the file."""
    try:
        source = find_source()
        flags = make_flags(source.folder, source.commit)
    except BrushsetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    write_atomic(FLAGS_FILE, flags_text(flags))
    print(f"{FLAGS_FILE}: {len(flags['options'])} options of sd-scripts {source.commit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
