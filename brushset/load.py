"""From files and options to a StyleSpec: style TOML, then profiles, then `--set`, later ones on top.

Everything wrong is said at once, a line each, with the nearest known name:
`styles/cartoon.toml [train]: unknown key "netwrok_dim"; did you mean "network_dim"?`
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from brushset.errors import UsageError
from brushset.files import parse_toml_value, read_toml, shown, toml_text
from brushset.spec import STYLE_NAME, StyleSpec

Tables = dict[str, Any]


def load_style(
    path: Path,
    *,
    profiles: Sequence[Path] = (),
    layers: Sequence[tuple[str, Tables]] = (),
    settings: Sequence[str] = (),
) -> StyleSpec:
    """Reads a style file and lays over it: profiles, named layers, `section.key=value` settings.

    Raises:
        UsageError: every unknown key, wrong type and impossible combination, a line each.
    """
    stack = [(shown(path), read_toml(path))]
    stack += [(shown(profile), read_toml(profile)) for profile in profiles]
    stack += layers
    stack += [(f"--set {setting}", parse_setting(setting)) for setting in settings]
    spec = build_spec(stack)
    if spec.name != path.stem and path.name != "spec.toml":
        raise UsageError(
            f'{shown(path)}: name = "{spec.name}" differs from the file\'s name; fix: name = "{path.stem}"'
        )
    return spec


def build_spec(layers: Sequence[tuple[str, Tables]]) -> StyleSpec:
    """Merges named layers, later ones on top, into a StyleSpec."""
    merged: Tables = {}
    origin: dict[str, str] = {}
    for source, tables in layers:
        _lay_over(merged, tables)
        for key in _leaves(tables):
            origin[key] = source
    try:
        return StyleSpec.model_validate(_tuples(merged))
    except ValidationError as error:
        findings = [_explain(item, origin, layers[0][0]) for item in error.errors()]
        raise UsageError.of_many(findings) from error


def check_style_name(name: str) -> str:
    """Returns the name, or raises UsageError where it could not be a folder's name everywhere."""
    if not re.match(STYLE_NAME, name) or name == "all":
        raise UsageError(f'style "{name}": a style is named by 1-48 of a-z 0-9 _ -, starting with a letter or digit')
    return name


def parse_setting(text: str) -> Tables:
    """`train.network_dim=16` → {"train": {"network_dim": 16}}."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > 3:
        raise UsageError(f'--set {text}: expected section.key=value, such as "--set train.network_dim=16"')
    tables: Any = parse_toml_value(value.strip())
    for part in reversed(parts):
        tables = {part: tables}
    return dict(tables)


def spec_text(spec: StyleSpec) -> str:
    """The fully resolved spec as TOML; reading it back gives an equal spec."""
    return toml_text(_without_none(spec.model_dump(mode="json")))


def _lay_over(below: Tables, above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = dict(value) if isinstance(value, dict) else value


def _leaves(tables: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tables.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples: specs are immutable, and strict about it."""
    if isinstance(value, dict):
        return {key: (item if key == "extra" else _tuples(item)) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _explain(item: Any, origin: Mapping[str, str], default_source: str) -> str:
    """One pydantic finding as one line of ours."""
    location = [str(part) for part in item["loc"]]
    source = origin.get(".".join(location), origin.get(".".join(location[:2]), default_source))
    if not location:
        return "\n".join(f"{default_source}: {line}" for line in str(item["ctx"]["error"]).splitlines())
    table = "" if source.startswith("--") or len(location) == 1 else f" [{'.'.join(location[:-1])}]"
    if item["type"] == "extra_forbidden":
        return f'{source}{table}: unknown key "{location[-1]}"{_nearest(location)}'
    if item["type"] == "missing":
        return f'{source}{table}: "{location[-1]}" is missing'
    stated = "" if source.startswith("--") else f"{location[-1]} = {item['input']!r}: "
    return f"{source}{table}: {stated}{_lower_first(item['msg'])}"


def _nearest(location: Sequence[str]) -> str:
    model: Any = StyleSpec
    for part in location[:-1]:
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return ""
    names = difflib.get_close_matches(location[-1], model.model_fields, n=1, cutoff=0.6)
    if names:
        return f'; did you mean "{names[0]}"?'
    return _elsewhere(location[-1])


def _elsewhere(key: str) -> str:
    """A key that exists, but in another table."""
    for section, field in StyleSpec.model_fields.items():
        annotation = typing.cast("Any", field.annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and key in annotation.model_fields:
            return f"; it belongs to [{section}]"
    return ""


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
