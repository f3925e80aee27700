"""The options that all commands share, told once; and the specs that they add up to.

`Options` is a dataclass whose fields are typer options; `takes_options` gives a command all of them. Everything that
has no option of its own is `--set section.key=value`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from brushset.cli.devices import parse_gpus
from brushset.errors import UsageError
from brushset.load import Tables, load_style
from brushset.paths import PROFILES, STYLES
from brushset.spec import StyleSpec


@dataclass(frozen=True)
class Options:
    """What a user can say on the command line."""

    style: Annotated[list[str], typer.Option(metavar="NAME", help="Style to work on, or all; repeats.")] = field(
        default_factory=list
    )
    images: Annotated[list[str], typer.Option(metavar="[STYLE=]DIR", help="Folder of images; repeats.")] = field(
        default_factory=list
    )
    smoke: Annotated[bool, typer.Option("--smoke", help="Two steps on a made-up model: shows that it runs.")] = False
    profile: Annotated[
        list[str], typer.Option(metavar="NAME", help="Settings from styles/profiles/NAME.toml; repeats.")
    ] = field(default_factory=list)
    base_model: Annotated[str | None, typer.Option(metavar="PATH|HF-ID", help="Model to train on.")] = None
    engine: Annotated[str | None, typer.Option(metavar="auto|kohya|native", help="Trainer.")] = None
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None
    parallel: Annotated[int, typer.Option(min=1, metavar="N", help="Styles trained at once, a process each.")] = 1
    executor: Annotated[str | None, typer.Option(metavar="local|ray|slurm", help="Where runs are done.")] = None
    gpus: Annotated[
        str | None, typer.Option(metavar="0,1", help="GPUs for one training, or, with --parallel, for the styles.")
    ] = None
    mps: Annotated[bool, typer.Option("--mps", help="With --parallel: overlap kernels by CUDA MPS where it works.")] = (
        False
    )
    budget: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="For choosing and judging; default: all it takes.")
    ] = None
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs")
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None
    force: Annotated[str | None, typer.Option(metavar="STAGE", help="Redo this stage and what depends on it.")] = None
    settings: Annotated[list[str], typer.Option("--set", metavar="section.key=value", help="Any setting; repeats.")] = (
        field(default_factory=list)
    )
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, the TOML and the command.")] = False
    json: Annotated[bool, typer.Option("--json", help="JSON Lines on stdout, nothing else there.")] = False

    def laid_over(self, below: Options | None) -> Options:
        """These options, with what was said before the subcommand where they say nothing."""
        if below is None:
            return self
        bare = Options()
        changes = {
            item.name: getattr(below, item.name)
            for item in dataclasses.fields(self)
            if getattr(self, item.name) == getattr(bare, item.name)
        }
        return dataclasses.replace(self, **changes)

    def layers(self) -> list[tuple[str, Tables]]:
        """The options that have a setting of their own, as named layers for `load_style`."""
        found: list[tuple[str, Tables]] = []
        if self.base_model is not None:
            found.append(("--base-model", {"base": {"model": _model_name(self.base_model)}}))
        if self.engine is not None:
            found.append(("--engine", {"train": {"engine": self.engine}}))
        if self.epochs is not None:
            found.append(("--epochs", {"train": {"epochs": self.epochs, "max_steps": None}}))
        if self.batch_size is not None:
            found.append(("--batch-size", {"train": {"batch_size": self.batch_size}}))
        if self.seed is not None:
            found.append(("--seed", {"train": {"seed": self.seed}}))
        if self.executor is not None:
            found.append(("--executor", {"executor": {"use": self.executor}}))
        if self.budget is not None:
            found.append(("--budget", {"evaluate": {"budget_minutes": self.budget}}))
        return found

    def profiles(self) -> list[Path]:
        """The profile files asked for, `--smoke` first."""
        return [_profile_file(name) for name in (["smoke"] if self.smoke else []) + self.profile]


def takes_options(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a typer command all fields of Options, and of whatever other such dataclass it takes, as its options."""
    hints = typing.get_type_hints(function, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(function).parameters.values()
    ]
    kinds: dict[str, Any] = {each.name: each.annotation for each in own if dataclasses.is_dataclass(each.annotation)}
    parameters = [each for each in own if each.name not in kinds]
    for kind in reversed(kinds.values()):
        parameters += _as_options(kind)

    @functools.wraps(function)
    def command(**values: Any) -> None:
        made = {
            name: kind(**{item.name: values.pop(item.name) for item in dataclasses.fields(kind)})
            for name, kind in kinds.items()
        }
        function(**made, **values)

    del command.__wrapped__  # typer would read the wrapped function's signature instead
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def option_words(options: Any, without: Collection[str] = ()) -> list[str]:
    """The options of such a dataclass that were given, as words of a command line, but for some fields."""
    return [
        word
        for item in dataclasses.fields(options)
        if item.name not in without and getattr(options, item.name) != _default(item)
        for word in _words(_flag(type(options), item), getattr(options, item.name))
    ]


def spread_values(argv: Sequence[str], flags: Sequence[str]) -> list[str]:
    """`--prompts a b` → `--prompts a --prompts b`, for flags that take several words."""
    spread: list[str] = []
    flag = ""
    for word in argv:
        if word.startswith("-"):
            flag = word if word in flags else ""
            if not flag:
                spread.append(word)
        elif flag:
            spread += [flag, word]
        else:
            spread.append(word)
    return spread


def known_styles() -> list[str]:
    """Names of the files in styles/."""
    return sorted(path.stem for path in STYLES.glob("*.toml"))


def load_spec(name: str, options: Options, *, images: Path | None) -> StyleSpec:
    """The spec of one style under these options; `images` replaces the folder that the style file names."""
    path = STYLES / f"{name}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(name, known_styles(), n=1)
        hint = (
            f'did you mean "{near[0]}"?'
            if near
            else f"fix: copy styles/cartoon.toml to styles/{name}.toml and change it"
        )
        raise UsageError(f"styles/{name}.toml: no such style; {hint}")
    layers = options.layers()
    if options.gpus is not None and options.parallel == 1:
        layers.append(("--gpus", {"train": {"processes": len(parse_gpus(options.gpus))}}))
    if images is not None:
        layers.append(("--images", {"dataset": {"images": str(images)}}))
    return load_style(path, profiles=options.profiles(), settings=options.settings, layers=layers)


def _profile_file(name: str) -> Path:
    path = PROFILES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.toml")))
        raise UsageError(f"--profile {name}: no styles/profiles/{name}.toml; there are: {known}")
    return path


def _model_name(text: str) -> str:
    """A path as it is from anywhere; an id as it stands."""
    return str(Path(text).absolute()) if Path(text).exists() else text


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def _as_options(kind: Any) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            item.name, inspect.Parameter.KEYWORD_ONLY, default=_default(item), annotation=hints[item.name]
        )
        for item in dataclasses.fields(kind)
    ]


def _flag(kind: Any, item: dataclasses.Field[Any]) -> str:
    """The flag of a field."""
    declared: Any = typing.get_type_hints(kind, include_extras=True)[item.name].__metadata__[0]
    named = [declared.default, *(declared.param_decls or ())]  # typer puts the first name where a default would be
    return next((word for word in named if isinstance(word, str)), "--" + item.name.replace("_", "-"))


def _words(flag: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [flag] if value else []
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [word for one in values for word in (flag, str(one))]
