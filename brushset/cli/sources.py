"""Which styles are meant, and where each one's images are.

In this order: `--images`; for a smoke run the demo images; the folder that the style file names, or datasets/<style>;
the folder of the style's newest real run, so that `preprocess --images DIR` may be followed by a plain `train`.
"""

from __future__ import annotations

from pathlib import Path

from brushset.cli.options import Options, known_styles, load_spec
from brushset.demo import demo_folder, demo_images
from brushset.errors import BrushsetError
from brushset.load import check_style_name, load_style
from brushset.paths import PROJECT, RunsDir


def style_names(options: Options) -> list[str]:
    """The styles that are meant: `--style`, else those of `--images STYLE=DIR`, else all that have images.

    Where none has any, all are returned: the error that follows names the folders.
    """
    asked = options.style or [key for key in images_by_style(options) if key]
    if "all" in asked:
        return known_styles()
    if asked:
        return [check_style_name(name) for name in dict.fromkeys(asked)]
    if options.smoke or options.images:
        return known_styles()
    return [name for name in known_styles() if find_images(name, options, touch=False).is_dir()] or known_styles()


def images_by_style(options: Options) -> dict[str, Path]:
    """`--images` by style; the key "" is a folder for whichever style is asked for."""
    found: dict[str, Path] = {}
    for text in options.images:
        name, equals, folder = text.partition("=")
        if equals and not Path(text).exists():
            found[check_style_name(name)] = Path(folder).resolve()
        else:
            found[""] = Path(text).resolve()
    return found


def find_images(name: str, options: Options, *, touch: bool) -> Path:
    """The folder of a style's images, whether or not it is there; `touch` false makes no demo images."""
    given = images_by_style(options)
    if folder := given.get(name, given.get("")):
        return folder
    if options.smoke:
        return demo_images(name) if touch else demo_folder(name)
    own = load_spec(name, options, images=None).images_dir(PROJECT)
    return own if own.is_dir() else _remembered(name, options) or own


def _remembered(name: str, options: Options) -> Path | None:
    """The images folder of the style's newest run that was not a smoke run."""
    runs = RunsDir(options.runs_dir.absolute())
    for run in reversed(runs.runs_of(name)):
        try:
            spec = load_style(run.spec)
        except BrushsetError:
            continue
        folder = spec.images_dir(PROJECT)
        if not spec.smoke and folder.is_dir():
            return folder
    return None
