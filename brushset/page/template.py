"""How a page is made of a template of this folder: strict about names, and everything that users wrote is escaped."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from brushset.files import one_line


def render_page(template: str, values: Mapping[str, object]) -> str:
    """The page's HTML from what the template names; a name that is missing raises."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["shell"] = shlex.join
    environment.filters["one_line"] = one_line
    environment.filters["fixed"] = fixed
    environment.filters["signed"] = lambda value, decimals: fixed(value, decimals, "+")
    environment.filters["short"] = lambda value: f"{value:g}".replace("-", "−")
    environment.filters["sentence"] = sentence
    return environment.get_template(template).render(values)


def sentence(text: str) -> str:
    """With a capital and one full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def fixed(value: float, decimals: int, sign: str = "") -> str:
    """With a real minus, and none on what rounds to nothing."""
    text = f"{value:{sign}.{decimals}f}"
    return (text.replace("-", "") if float(text) == 0 else text).replace("-", "−")
