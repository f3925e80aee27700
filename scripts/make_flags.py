"""Writes brushset/kohya/check/flags.json: every option and dataset key that sd-scripts knows, asked from its own code.

    SD_SCRIPTS_DIR=… python -m scripts.make_flags

Options with type, choices and default; options that only other scripts of sd-scripts have; what the dataset loader
insists on; optimizers with their settings, and schedules that it can make. All is imported in a child process, so that
nothing of sd-scripts ever enters ours; only names, types and values are kept. A test (marked vendor) compares.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from brushset.errors import BrushsetError, EnvironmentProblem
from brushset.files import write_atomic
from brushset.kohya.check.flags import FLAGS_FILE
from brushset.kohya.source import find_source
from brushset.process import child_env

ASK = r"""
import argparse, contextlib, functools, importlib, inspect, io, json, sys
sys.path.insert(0, sys.argv[1])
OTHERS = (
    "sdxl_train_network", "flux_train_network", "sd3_train_network", "lumina_train_network",
    "hunyuan_image_train_network", "anima_train_network", "train_db", "fine_tune", "sdxl_train", "sd3_train",
    "flux_train", "lumina_train", "anima_train", "train_textual_inversion", "sdxl_train_textual_inversion",
    "train_control_net", "sdxl_train_control_net", "sdxl_train_control_net_lllite", "flux_train_control_net",
)
OPTIMIZERS = {
    "Lion": "lion_pytorch.Lion", "AdamW8bit": "bitsandbytes.optim.AdamW8bit", "SGDNesterov8bit": "bitsandbytes.optim.SGD8bit",
    "Lion8bit": "bitsandbytes.optim.Lion8bit", "PagedAdamW8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "PagedLion8bit": "bitsandbytes.optim.PagedLion8bit", "PagedAdamW": "bitsandbytes.optim.PagedAdamW",
    "PagedAdamW32bit": "bitsandbytes.optim.PagedAdamW32bit", "SGDNesterov": "torch.optim.SGD", "AdamW": "torch.optim.AdamW",
    "Adafactor": "transformers.optimization.Adafactor", "Prodigy": "prodigyopt.Prodigy",
    "RAdamScheduleFree": "schedulefree.RAdamScheduleFree", "AdamWScheduleFree": "schedulefree.AdamWScheduleFree",
    "SGDScheduleFree": "schedulefree.SGDScheduleFree", "DAdaptation": "", "DAdaptAdamPreprint": "", "DAdaptAdaGrad": "",
    "DAdaptAdam": "", "DAdaptAdan": "", "DAdaptAdanIP": "", "DAdaptLion": "", "DAdaptSGD": "",
}
with contextlib.redirect_stdout(io.StringIO()):
    import torch
    import train_network
    from library import train_util
    from library.config_util import ConfigSanitizer
    others = {name: importlib.import_module(name).setup_parser() for name in OTHERS}

def options_of(parser):
    return [action for action in parser._actions if action.dest != "help"]

def option(action):
    kind = {0: "switch", "*": "list"}.get(action.nargs, "value")
    kinds = {"int": "int", "float": "float", "str": "str", "Path": "str", "int_or_float": "number"}
    name = "bool" if kind == "switch" else kinds[getattr(action.type, "__name__", "str") if action.type else "str"]
    entry = {"kind": kind, "type": name}
    if action.choices is not None:
        entry["choices"] = [choice for choice in action.choices if choice is not None]
    if action.default not in (None, False):
        entry["default"] = action.default
    return entry

def schema(value):
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, functools.partial):
        name = value.args[0].__name__
        return f"{name} or pair" if "scalar" in value.func.__name__ else f"pair of {name}"
    return " or ".join(sorted(validator.__name__ for validator in value.validators if isinstance(validator, type)))

def keys(table):
    return {str(key): schema(value) for key, value in table.items() if str(key) != "subsets"}

def settings(path):
    if not path:
        return None
    module, _, name = path.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    return [item.name for item in parameters if item.name not in ("self", "params", "lr") and item.kind != item.VAR_KEYWORD]

def schedule_works(name):
    args = argparse.Namespace(
        optimizer_type="AdamW", lr_scheduler=name, max_train_steps=100, lr_warmup_steps=0 if name == "constant" else 10,
        lr_decay_steps=10, lr_scheduler_num_cycles=1, lr_scheduler_power=1, lr_scheduler_timescale=None,
        lr_scheduler_min_lr_ratio=0.1, lr_scheduler_args=None, lr_scheduler_type="",
    )
    try:
        train_util.get_scheduler_fix(args, torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1), 1)
    except Exception:
        return False
    return True

sanitizer = ConfigSanitizer(True, True, False, True)
actions = options_of(train_network.setup_parser())
known = {action.dest for action in actions}
elsewhere = {}
for name, parser in others.items():
    for action in options_of(parser):
        if action.dest not in known:
            elsewhere.setdefault(action.dest, []).append(name + ".py")
print(json.dumps({
    "options": {action.dest: option(action) for action in actions},
    "elsewhere": elsewhere,
    "strict": {str(key): schema(value) for key, value in sanitizer.argparse_schema.items() if str(key) in known and schema(value)},
    "optimizers": {name: settings(path) for name, path in OPTIMIZERS.items()},
    "torch_optimizers": sorted(
        name for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    ),
    "schedules": [name.value for name in train_util.SchedulerType if schedule_works(name.value)] + ["piecewise_constant"],
    "dataset": {
        "general": keys(sanitizer.general_schema),
        "datasets": keys(sanitizer.db_dataset_schema),
        "datasets of metadata": keys(sanitizer.ft_dataset_schema),
        "datasets of masks": keys(sanitizer.cn_dataset_schema),
        "subsets": keys(sanitizer.db_subset_schema),
        "subsets of metadata": keys(sanitizer.ft_subset_schema),
        "subsets of masks": keys(sanitizer.cn_subset_schema),
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
    """Sorted JSON, one option or key a line, so that a new version of sd-scripts shows as a readable diff."""
    return _text(flags, ("options", "elsewhere", "strict", "optimizers", "dataset"), "") + "\n"


def _text(value: Any, spread: tuple[str, ...], indent: str) -> str:
    """A mapping with a line an entry; entries named in `spread` are spread in turn, and so are mappings in "dataset"."""
    inner = indent + "  "
    lines = []
    for key, item in value.items() if indent == "" else sorted(value.items()):
        deeper = key in spread or (isinstance(item, dict) and key in value and spread == ("*",))
        text = _text(item, ("*",) if key == "dataset" else (), inner) if deeper else json.dumps(item)
        lines.append(f"{inner}{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


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
