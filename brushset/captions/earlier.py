"""What this machine wrote into a run's caption files before, so that what a user changed there is told from it.

A stage's record says what was written, and comes last: a process that dies between files and record leaves captions
that nobody wrote. So the texts are noted before they are published, beside the records, together with those of the
time before: a crash may leave both kinds. A caption equal to what the machine wrote is no edit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from brushset.captions.text import read_captions, without_trigger
from brushset.errors import BrushsetError
from brushset.files import read_json, write_json
from brushset.images import CAPTION_SUFFIX
from brushset.paths import RunPaths
from brushset.records import Captions

EDITED = "edited"
SIDECAR = "sidecar"
_NOTES = "caption.written"


@dataclass(frozen=True)
class Earlier:
    """`record` is of the last finished time, None where there was none; `found` is what stands in images/ now, by the
    images' stems, `written` what the machine may have left there.
    """

    record: Captions | None
    found: Mapping[str, str]
    written: Mapping[str, Sequence[str]]
    edits: Mapping[str, Sequence[str]]
    triggers: frozenset[str]

    def edit_of(self, stem: str) -> str | None:
        """The user's text without the trigger it had, or None where the caption is as it was written."""
        text = self.found.get(stem)
        if text is None or (text in self.written.get(stem, ()) and text not in self.edits.get(stem, ())):
            return None
        for trigger in sorted(self.triggers):
            text = without_trigger(text, trigger)
        return text

    def said_by(self, captioner: str, stem: str) -> str | None:
        """What the same captioner said of the image: a run that was moved need not have the model any more."""
        if self.record is None or self.record.captioner != captioner:
            return None
        found = (item for item in self.record.captions if Path(item.image).stem == stem)
        item = next((item for item in found if item.source not in {EDITED, SIDECAR}), None)
        return (item.said or without_trigger(item.text, self.record.trigger)) if item else None


def look_back(run: RunPaths, images: Sequence[str], previous: Mapping[str, Any] | None) -> Earlier:
    """What is known of a run's captions. `images` are paths below images/; `previous` is the stage's last record.

    Raises:
        InputError: a caption file is no UTF-8; it is the user's work and not to be overwritten.
    """
    found = _found(run, images)
    if previous is not None:
        record = Captions.model_validate(previous)
        return _earlier(found, [record], record)
    own = _noted(run)
    # A crash while another run's captions were taken over leaves neither record nor notes here, but both over there.
    return _earlier(found, own or [item for other in _siblings(run) for item in [*_noted(other), *_recorded(other)]])


def note_written(run: RunPaths, captions: Captions) -> None:
    """Notes what is about to be published, and what the time before left."""
    before = _recorded(run) or _noted(run)[:1]
    kept = [captions, *before]
    write_json(run.record(_NOTES), [item.model_dump(mode="json") for item in kept])


def _earlier(found: Mapping[str, str], known: Iterable[Captions], record: Captions | None = None) -> Earlier:
    written: dict[str, list[str]] = {}
    edits: dict[str, list[str]] = {}
    triggers = set()
    for captions in known:
        triggers.add(captions.trigger)
        for item in captions.captions:
            stem = Path(item.image).stem
            written.setdefault(stem, []).append(item.text)
            if item.source == EDITED:
                edits.setdefault(stem, []).append(item.text)
    return Earlier(record, found, written, edits, frozenset(triggers))


def _found(run: RunPaths, images: Sequence[str]) -> dict[str, str]:
    """The captions that stand in images/: beside the image, or where it lay before the held-out split changed."""
    paths = []
    for name in images:
        beside = (run.images / name).with_suffix(CAPTION_SUFFIX)
        places = (beside, run.images / beside.name, run.heldout / beside.name)
        paths.append(next((place for place in places if place.is_file()), beside))
    found = zip(images, read_captions(paths), strict=True)
    return {Path(name).stem: text for name, text in found if text is not None}


def _siblings(run: RunPaths) -> list[RunPaths]:
    others = sorted(path for path in run.root.parent.glob("*/records") if path.parent != run.root)
    return [RunPaths(path.parent) for path in others]


def _noted(run: RunPaths) -> list[Captions]:
    """What was noted before publishing, newest first."""
    return _parsed(run.record(_NOTES))


def _recorded(run: RunPaths) -> list[Captions]:
    return _parsed(run.record("caption"))


def _parsed(path: Path) -> list[Captions]:
    """The captions of a record or of notes; none where there is no file that can be read."""
    if not path.is_file():
        return []
    try:
        content = read_json(path)
        items = content if isinstance(content, list) else [content["data"]]
        return [Captions.model_validate(item) for item in items]
    except (BrushsetError, ValidationError, KeyError, TypeError):
        return []
