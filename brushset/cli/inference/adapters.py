"""Which adapters `--loras` names, what is known of each before any model is loaded, and which base they go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brushset.bases.header import read_header
from brushset.cli.adapter_sources import Located, locate, short_names, split_source
from brushset.cli.inference.findings import collecting, refuse
from brushset.cli.trained import trained_style
from brushset.errors import UsageError
from brushset.files import sha256_file, shown
from brushset.lora.adapter import adapter_files
from brushset.lora.kinds import refuse_foreign
from brushset.lora.metadata import model_hash
from brushset.paths import RunsDir
from brushset.spec import StyleSpec


@dataclass(frozen=True)
class Adapter:
    """An adapter of this command. `name` is what it is called in mixes and file names, `source` what the user typed before
    the weight, `weight` what stood after the colon, else what was chosen of a style, None for neither. `alias` is the
    name that A1111 lists the file under.
    """

    name: str
    source: str
    located: Located
    weight: str | None
    trigger: str
    alias: str
    sha256: str
    model_hash: str

    @property
    def spec(self) -> StyleSpec | None:
        """The style that it was trained for, where it is one of ours."""
        return self.located.style.spec if self.located.style else None

    @property
    def trained_on(self) -> str:
        """SHA-256 of the base model that it was trained on, where that is known."""
        return self.located.style.trained.base_sha256 if self.located.style else ""


def read_adapters(texts: Sequence[str], runs: RunsDir) -> list[Adapter]:
    """The adapters that `--loras` names, in order. Looks at headers only.

    Raises:
        UsageError: all that is wrong with any of them: no such style, epoch or file, another family's, named twice.
    """
    findings: list[str] = []
    found: list[tuple[str, str | None, Located]] = []
    for text in texts:
        with collecting(findings):
            source, weight = split_source(text)
            located = locate(source, runs)
            for file in adapter_files(located.path):
                refuse_foreign(read_header(file), shown(file))
            found.append((source, weight or _chosen_weight(located), located))
    findings += _twice([(source, located.path) for source, _, located in found])
    refuse([f"--loras {finding}" for finding in findings])
    names = short_names([(source, located.path) for source, _, located in found])
    return [
        _adapter(name.replace(".", "_"), source, weight, located)  # PEFT and torch take a dot for a path
        for name, (source, weight, located) in zip(names, found, strict=True)
    ]


def adapters_of_styles(names: Sequence[str], runs: RunsDir) -> list[Adapter]:
    """The newest adapter of each style, at the weight that was chosen of it.

    Raises:
        UsageError: a style that is not trained.
    """
    styles = [trained_style(runs, name) for name in names]
    return [
        _adapter(style.spec.name, style.spec.name, f"{style.weight:g}", Located(style.file(), style))
        for style in styles
    ]


def adapter_at(name: str, path: Path) -> Adapter:
    """The adapter of a file, under a name."""
    return _adapter(name, str(path), None, Located(path))


def require_one_base(adapters: Sequence[Adapter]) -> None:
    """Raises UsageError where styles were trained on different base models: no base is right for all."""
    bases = {adapter.name: adapter.trained_on for adapter in adapters if adapter.trained_on}
    if len(set(bases.values())) > 1:
        listed = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in bases.items())
        raise UsageError(
            f"these styles were trained on different base models ({listed}); fix: name styles of one, or the base "
            "to draw all of them on with --base-model"
        )


def _adapter(name: str, source: str, weight: str | None, located: Located) -> Adapter:
    file = adapter_files(located.path)[0]
    metadata = read_header(file).metadata
    stated = metadata.get("modelspec.trigger_phrase", "")
    return Adapter(
        name=name,
        source=source,
        located=located,
        weight=weight,
        trigger=located.style.spec.trigger if located.style else stated.strip(),
        alias=metadata.get("ss_output_name") or (name if located.path.is_dir() else file.stem),
        sha256=sha256_file(file),
        model_hash=metadata.get("sshs_model_hash") or model_hash(file),
    )


def _chosen_weight(located: Located) -> str | None:
    """Of a style that was named without epoch and weight, the weight that was chosen of it."""
    if located.style is None or located.epoch is not None or located.style.chosen.weight is None:
        return None
    return f"{located.style.chosen.weight:g}"


def _twice(named: Sequence[tuple[str, Path]]) -> list[str]:
    first: dict[Path, str] = {}
    findings = []
    for source, path in named:
        real = path.resolve()
        if real in first:
            same = "" if source == first[real] else f" (it is {first[real]})"
            findings.append(f"{source}: stands twice{same}; fix: name it once, with one weight")
        first.setdefault(real, source)
    return findings
