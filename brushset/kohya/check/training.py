"""What is wrong with a training TOML: every key by name, type, choice, range and effect, then the rules over all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from brushset.kohya.check.findings import Finding, Path, flat_tables, nearest, said
from brushset.kohya.check.options import (
    IN_NETWORK_ARGS,
    IN_OPTIMIZER_ARGS,
    MEANT,
    NO_EFFECT,
    default_of,
    known_flags,
    nearest_option,
    range_complaint,
    type_complaint,
    type_effect,
)
from brushset.kohya.check.programs import programs_of, scripts_of
from brushset.kohya.check.rules import EMPTY_BITES, argument_complaints, broken_rules, numbers_are_numbers

_SURE = 0.85  # of 1: an unknown key so like an option is a typo, whoever else has a key of that name


def check_training(tables: Mapping[str, Any], file: str, *, script: str = "") -> list[Finding]:
    """All findings on a training TOML. `script` is the other script of sd-scripts that it was written for: what holds
    for SD 1.5 alone is then not said.
    """
    findings: list[Finding] = []
    given: dict[str, Any] = {}
    places: dict[str, Path] = {}
    for place, value in flat_tables(tables):
        key = str(place[-1])
        if key in places:
            findings.append(_twice(Finding(file, place, "wrong", ""), value, given[key], places[key]))
        findings += key_findings(place, value, file, script=script)
        given[key], places[key] = value, place  # the later one wins
    for key, place in places.items():
        if key in ("config_file", "output_config"):
            text = f"{key} in a file has no effect"
            findings.append(Finding(file, place, "harmless", text, "it is looked at on the command line only"))
    told_of = {finding.path for finding in findings}
    for rule, told in broken_rules(given) if numbers_are_numbers(given) else ():
        place = places.get(rule.key, (rule.key,) if rule.key else ())
        if not (script and rule.sd15_only) and not (rule.severity == "harmless" and place in told_of):
            findings.append(Finding(file, place, rule.severity, *told))
    for key, text, effect, fix in argument_complaints(given):
        findings.append(Finding(file, places.get(key, (key,)), "wrong", text, effect, fix))
    return list(dict.fromkeys(findings))


def key_findings(place: Path, value: object, file: str, *, script: str = "") -> list[Finding]:
    """What is wrong with one key by itself."""
    key, options = str(place[-1]), known_flags()["options"]
    if key not in options:
        return [_unknown(key, value, place, file)]
    if isinstance(value, Mapping):
        text = f"{key} is a table"
        return [
            Finding(
                file, place, "wrong", text, "sd-scripts keeps it as such, and does not find its value", f"{key} = …"
            )
        ]
    if complaint := type_complaint(key, value):
        effect, harmless = type_effect(key, value)
        return [Finding(file, place, "harmless" if harmless else "wrong", complaint, effect)]
    if value == "" and key in EMPTY_BITES:
        return [
            Finding(
                file,
                place,
                "wrong",
                f'{key} = ""',
                f"an empty string is something given: {EMPTY_BITES[key]}",
                f"leave {key} out",
            )
        ]
    text, effect = range_complaint(key, value)
    if text:
        return [Finding(file, place, "wrong", text, effect)]
    if value and value != default_of(key) and key in NO_EFFECT and not script:
        return [
            Finding(
                file,
                place,
                "wrong",
                f"{said(key, value)} does nothing for an SD 1.5 LoRA",
                NO_EFFECT[key],
                "leave it out",
            )
        ]
    return []


def _unknown(key: str, value: object, place: Path, file: str) -> Finding:
    """A key that train_network.py does not have: whose it is, or what was meant. It is ignored in any case."""
    flags, ignored = known_flags(), "sd-scripts ignores it without a word"
    if isinstance(value, Mapping):
        effect = "a second level of tables is kept as one value that nothing asks for: its keys have no effect"
        return Finding(file, place, "wrong", f'table "{key}" inside of a table', effect, "one level of tables")
    if scripts := scripts_of(key):
        also = f" and {len(scripts) - 1} more" if len(scripts) > 1 else ""
        text, effect = f'"{key}" is an option of {scripts[0]}{also}', "train_network.py ignores it without a word"
        return Finding(file, place, "another script's", text, effect, f"leave {key} out for SD 1.5")
    if key in flags["dataset"]["subsets"] | flags["dataset"]["datasets"]:
        text, fix = f'"{key}" is a key of the dataset TOML', "put it there, under [[datasets]] or [[datasets.subsets]]"
        return Finding(file, place, "wrong", text, f"in a training TOML {ignored}", fix)
    for names, home in ((IN_NETWORK_ARGS, "network_args"), (IN_OPTIMIZER_ARGS, "optimizer_args")):
        if key in names:
            return Finding(file, place, "wrong", f'unknown key "{key}"', ignored, f'{home} = ["{key}={value}"]')
    meant = MEANT.get(key.lower(), "") or nearest(key, flags["options"], _SURE)
    if not meant and (programs := programs_of(key)):
        text = f'"{key}" is a setting of {programs[0]}'
        return Finding(
            file, place, "another script's", text, "sd-scripts ignores it without a word", f"leave {key} out"
        )
    meant = meant or nearest_option(key)
    if not meant:
        return Finding(file, place, "wrong", f'unknown key "{key}"', ignored)
    default = default_of(meant)
    stays = "off" if default is False else default if default not in (None, "") else "its default"
    return Finding(
        file, place, "wrong", f'unknown key "{key}"; did you mean "{meant}"?', f"{ignored}, and {meant} stays at {stays}"
    )  # fmt: skip


def _twice(later: Finding, value: object, earlier: object, where: Path) -> Finding:
    key = str(later.path[-1])
    text = f"{key} is also in [{where[0]}]" if len(where) > 1 else f"{key} is also at the top"
    if value == earlier:
        return dataclasses.replace(later, severity="harmless", text=text, effect="with the same value")
    effect = f"tables are flattened and the later one wins: {said(key, value)}"
    return dataclasses.replace(later, text=text, effect=effect, fix="one of them")
