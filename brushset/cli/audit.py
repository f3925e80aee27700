"""`audit DIR…`: whether folders of images will do, before anything is trained. No style file is needed.

Every folder is looked at before the exit code is told. What was found goes to the terminal, to audit.json and to a
page, neither of which is ever written into a folder of images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from brushset.audit.folder import audit_folder
from brushset.audit.result import AUDIT_JSON, AuditResult, write_audit
from brushset.audit.settings import AuditSettings
from brushset.cli.console import make_bars
from brushset.cli.guard import AlreadyTold, print_event, stderr, stdout, tell
from brushset.cli.options import Options, known_styles, load_spec
from brushset.cli.sources import find_images, images_by_style, style_names
from brushset.errors import BrushsetError, InputError, UsageError
from brushset.files import one_line, read_json, read_toml, shown
from brushset.load import build_spec, parse_setting
from brushset.log import EventLog
from brushset.page.audit import PAGE, by_severity, heading, write_audit_page
from brushset.spec import StyleSpec

AUDITS = "_audit"  # beside the styles' folders; no style can be called so

_NAMED_AT_MOST = 20
_MARKS = {"stop": ("✗", "red"), "warning": ("!", "yellow"), "note": ("·", "dim")}


@dataclass(frozen=True)
class Target:
    """One folder to look at, and by which spec. `name` is the style's, or the folder's."""

    name: str
    folder: Path
    spec: StyleSpec


@dataclass(frozen=True)
class Row:
    """What was found of one folder, and the folder where it is written."""

    name: str
    result: AuditResult
    place: Path

    def refusal(self) -> InputError:
        """Why the set is unusable, in one line."""
        audit = self.result.audit
        if not audit.found:
            return InputError(audit.reasons[0])
        stops = [item.code for item in audit.findings if item.severity == "stop"]
        return InputError(
            f"{one_line(self.name)}: {audit.unusable} of {audit.found} images cannot be trained on "
            f"({', '.join(stops)}); fix: as told above, or see {shown(self.place / PAGE)}"
        )


def audit_folders(folders: Sequence[Path], options: Options, out: Path | None) -> None:
    """Audits `folders`, else the folders of the styles that are meant; writes below `out`, else below runs/_audit.

    Raises:
        BrushsetError: the first failure, once all folders have been looked at and all failures told.
    """
    targets = _targets(folders, options)
    places = _places(targets, options, out)
    rows: list[Row] = []
    failures: list[BrushsetError] = []
    for target, place in zip(targets, places, strict=True):
        looked = _look_at(target, place, options)
        if isinstance(looked, Row):
            rows.append(looked)
        else:
            failures.append(looked)
    (_print_json if options.json else _print)(rows)
    for row in rows:
        if row.result.audit.verdict == "unusable":
            failures.append(row.refusal())
            tell(failures[-1], as_json=options.json)
    for failure in failures:
        raise AlreadyTold(failure)


def _look_at(target: Target, place: Path, options: Options) -> Row | BrushsetError:
    """Audits one folder and writes what was found; tells and returns what went wrong."""
    bars = None if options.json else _AuditBars()
    settings = AuditSettings.of(target.spec)
    try:
        result = audit_folder(target.folder, settings, EventLog(bars or _only_warnings))
        place.mkdir(parents=True, exist_ok=True)
        write_audit(place, result)
        write_audit_page(place, target.name, result, settings)
    except BrushsetError as error:
        if bars:
            bars.close()
        tell(error, as_json=options.json)
        return error
    finally:
        if bars:
            bars.close()
    return Row(target.name, result, place)


def _targets(folders: Sequence[Path], options: Options) -> list[Target]:
    if folders:
        if len(options.style) > 1 or "all" in options.style:
            raise UsageError("audit: folders and several styles; fix: one --style whose settings hold for the folders")
        missing = [folder for folder in folders if not folder.exists() and str(folder) in known_styles()]
        if missing:
            raise UsageError(f"{missing[0]}: no such folder; did you mean --style {missing[0]}?")
        spec = load_spec(options.style[0], options, images=None) if options.style else _bare_spec(options)
        unique = dict.fromkeys(folder.resolve() for folder in folders)
        return [Target(_name_of(folder), folder, spec) for folder in unique]
    given = images_by_style(options)
    if not options.style and set(given) == {""}:
        return [Target(_name_of(given[""]), given[""], _bare_spec(options))]
    return [
        Target(name, find_images(name, options, touch=True), load_spec(name, options, images=None))
        for name in style_names(options)
    ]


def _bare_spec(options: Options) -> StyleSpec:
    """The defaults, with profiles and settings laid over them."""
    layers = [("the defaults", {"name": "audit", "trigger": "trigger"})]
    layers += [(shown(profile), read_toml(profile)) for profile in options.profiles()]
    layers += options.layers()
    layers += [(f"--set {setting}", parse_setting(setting)) for setting in options.settings]
    return build_spec(layers)


def _name_of(folder: Path) -> str:
    return folder.resolve().name or "root"


def _places(targets: Sequence[Target], options: Options, out: Path | None) -> list[Path]:
    """Where each result is written: under the target's name, or a longer one where that is another folder's.

    Raises:
        UsageError: that would be inside a folder of images.
    """
    root = (out or options.runs_dir / AUDITS).absolute()
    taken: list[Path] = []
    for target in targets:
        folder = target.folder.resolve()
        digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
        choices = [root] if out and len(targets) == 1 else []
        choices += [
            root / name
            for name in (target.name, f"{folder.parent.name}-{target.name}", f"{target.name[:200]}-{digest}")
        ]
        free = [place for place in choices if place not in taken and (out or _audited(place) in {None, folder})]
        taken.append((free or choices[-1:])[0])
    _refuse_inside(taken, [target.folder.resolve() for target in targets])
    return taken


def _refuse_inside(places: Sequence[Path], folders: Sequence[Path]) -> None:
    for place in places:
        for folder in folders:
            if place.resolve().is_relative_to(folder):
                raise UsageError(
                    f"{shown(place)}: lies in the folder of images {shown(folder)}, where nothing is ever written; "
                    "fix: --out DIR elsewhere"
                )


def _audited(place: Path) -> Path | None:
    """The folder whose audit lies there already; None where there is none that can be read."""
    try:
        return Path(str(read_json(place / AUDIT_JSON)["audit"]["folder"]))
    except (BrushsetError, KeyError, TypeError):
        return None


def _print_json(rows: Sequence[Row]) -> None:
    for row in rows:
        paths = {"page": str(row.place / PAGE), "json": str(row.place / AUDIT_JSON)}
        print_event("audit", {"style": row.name, **paths, **row.result.audit.model_dump(mode="json")})


def _print(rows: Sequence[Row]) -> None:
    if rows:
        stdout.print(_table(rows))
    for row in rows:
        stdout.print(f"\n{one_line(row.name)}: {row.result.audit.verdict}", markup=False, style="bold")
        for finding in by_severity(row.result.audit.findings):
            files = _files_of(finding.code, row.result)
            mark, style = _MARKS[finding.severity]
            accepted = " (accepted)" if finding.accepted else ""
            text = f"{heading(finding, row.result.audit.found)}; fix: {finding.fix}" if files else finding.line
            stdout.print(one_line(f"  {mark} {finding.code}{accepted}: {text}"), markup=False, style=style)
            for line in files[:_NAMED_AT_MOST]:
                stdout.print(f"      {line}", markup=False)
            if len(files) > _NAMED_AT_MOST:
                stdout.print(f"      and {len(files) - _NAMED_AT_MOST} more: see the page", markup=False)
        stdout.print(f"  page: {shown(row.place / PAGE)}", markup=False)


def _table(rows: Sequence[Row]) -> Table:
    table = Table("set")
    for title in ("found", "usable", "to upscale", "unusable", "copies", "near-copies", "captions", "buckets"):
        table.add_column(title, justify="right")
    table.add_column("shorter side")
    table.add_column("verdict")
    for row in rows:
        audit = row.result.audit
        numbers = (
            audit.found, audit.different, audit.needs_upscaling, audit.unusable, audit.exact_duplicates,
            audit.near_duplicates, audit.with_sidecar, len(audit.buckets),
        )  # fmt: skip
        sides = f"{audit.min_side_px}–{audit.median_side_px}–{audit.max_side_px} px"
        name = escape(one_line(row.name))
        table.add_row(name, *(str(number) for number in numbers), sides, audit.verdict)
    return table


def _files_of(code: str, result: AuditResult) -> list[str]:
    """A line for each file that has a reason and a fix of its own; what holds for all alike, the finding says."""
    if code == "left-out":
        return list(result.audit.left_out)
    if code != "unreadable":
        return []
    return [
        f"{one_line(image.path)}: {one_line(image.findings[code])}" for image in result.images if code in image.findings
    ]


def _only_warnings(event: str, fields: Mapping[str, object]) -> None:
    """Where JSON Lines are asked for, they are the audits; each image is not worth one."""
    if event == "warning":
        print_event(event, fields)


class _AuditBars:
    """A bar while a set is looked at; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, event: str, fields: Mapping[str, object]) -> None:
        if event != "progress" or not stderr.is_terminal:
            return
        if self._bars is None:
            self._bars = make_bars(stderr)
            self._bars.start()
        if self._task is None:
            self._task = self._bars.add_task(str(fields["what"]), total=None, note="")
        done, total = float(str(fields["done"])), float(str(fields["total"]))
        self._bars.update(self._task, description=str(fields["what"]), completed=done, total=total)

    def close(self) -> None:
        """Takes the bar down."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None
