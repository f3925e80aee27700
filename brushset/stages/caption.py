"""One line of text an image, the trigger first. Who is heard, in this order:

    edited      the caption in the run's images/, where it is not as this stage left it: the user changed it
    sidecar     the .txt beside the user's image; an empty one says nothing
    captioner   the one that [caption] names

The trigger is the first comma-separated part, because `keep_tokens = 1` keeps that part in front when captions are
shuffled; it stands there once, whatever the text had. A caption that was edited stays so until its file is deleted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brushset.captioners import CAPTIONERS
from brushset.errors import InputError
from brushset.files import shown, write_atomic
from brushset.images import digest_or_unreadable, list_source_images, sidecar_of
from brushset.paths import PROJECT, RunPaths
from brushset.pipeline import Stage, StageContext
from brushset.records import Caption, Captions, Prepared, PreparedImage
from brushset.spec import StyleSpec

EDITED = "edited"
SIDECAR = "sidecar"


def with_trigger(text: str, trigger: str) -> str:
    """The caption with the trigger as its first comma-separated part and nowhere else; never empty."""
    parts = [" ".join(part.split()) for part in text.split(",")]
    parts = [part for part in parts if part and part.lower() != trigger.lower()]
    if parts:
        parts[0] = re.sub(rf"^{re.escape(trigger)}\s+", "", parts[0], flags=re.IGNORECASE)
    return ", ".join([trigger, *parts])


def read_caption(path: Path) -> str:
    """A caption file as one line: its lines joined by commas, without a byte-order mark and control characters.

    Raises:
        InputError: it is not UTF-8, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)}: not UTF-8 text; fix: save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be read: {error.strerror}; fix: its permissions") from error
    lines = [" ".join(line.split()).strip(" ,") for line in text.splitlines()]
    return "".join(char for char in ", ".join(filter(None, lines)) if char.isprintable())


@dataclass(frozen=True)
class _Earlier:
    """What this stage wrote the last time, and what stands in images/ now, by the images' stems."""

    captioner: str
    trigger: str
    written: Mapping[str, Caption]
    found: Mapping[str, str]
    touched: bool

    def edit_of(self, stem: str) -> str | None:
        """The user's text without the trigger it had, or None where the caption is as it was written."""
        text, written = self.found.get(stem), self.written.get(stem)
        if text is None or (written and written.text == text and written.source != EDITED):
            return None
        return ", ".join(part.strip() for part in text.split(",") if part.strip() != self.trigger)

    def text_by(self, captioner: str, trigger: str, stem: str) -> str | None:
        """What the same captioner said of the image. Editing a few captions must not send all the others through the
        captioner again; where none was touched, the stage was asked for (--force), and everything is made anew.
        """
        written = self.written.get(stem)
        same = self.touched and (self.captioner, self.trigger) == (captioner, trigger)
        if not same or written is None or written.source in {EDITED, SIDECAR} or stem not in self.found:
            return None
        return written.text


def _earlier(context: StageContext, images: Sequence[PreparedImage]) -> _Earlier:
    paths = [context.run.images / sidecar_of(Path(image.name)) for image in images]
    found = {path.stem: text for path, text in zip(paths, _read_all(paths), strict=True) if text is not None}
    if context.previous is None:
        return _Earlier("", "", {}, found, touched=False)
    record = Captions.model_validate(context.previous)
    written = {Path(caption.image).stem: caption for caption in record.captions}
    touched = any(not _stands(context.run.images / f"{stem}.txt", caption) for stem, caption in written.items())
    return _Earlier(record.captioner, record.trigger, written, found, touched=touched)


def _stands(path: Path, caption: Caption) -> bool:
    return path.is_file() and path.read_bytes() == _file_content(caption)


def _file_content(caption: Caption) -> bytes:
    return f"{caption.text}\n".encode()


def _run(context: StageContext) -> Captions:
    spec, images = context.spec, context.get(Prepared).images
    captioner = CAPTIONERS[spec.caption.captioner](spec.caption)
    signature = f"{captioner.name} ({captioner.settings})" if captioner.settings else captioner.name
    earlier = _earlier(context, images)
    sidecars = _read_all([sidecar_of(spec.images_dir(PROJECT) / image.source) for image in images])
    given: dict[str, tuple[str, str]] = {}
    for image, sidecar in zip(images, sidecars, strict=True):
        stem = Path(image.name).stem
        edit = earlier.edit_of(stem)
        known = earlier.text_by(signature, spec.trigger, stem)
        if edit is not None:
            given[image.name] = (edit, EDITED)
        elif sidecar:
            given[image.name] = (sidecar, SIDECAR)
        elif known is not None:
            given[image.name] = (known, captioner.name)
    missing = [image.name for image in images if image.name not in given]
    described = captioner.describe([context.run.images / name for name in missing], context.emit)
    given |= {name: (text, captioner.name) for name, text in zip(missing, described, strict=True)}
    captions = [
        Caption(image=image.name, text=with_trigger(given[image.name][0], spec.trigger), source=given[image.name][1])
        for image in images
    ]
    for caption in captions:
        write_atomic(context.workdir / sidecar_of(Path(caption.image)), _file_content(caption))
    counts = sorted(Counter(caption.source for caption in captions).items())
    context.emit("note", text="captions: " + ", ".join(f"{count} {source}" for source, count in counts))
    return Captions(captioner=signature, trigger=spec.trigger, captions=tuple(captions))


def _read_all(paths: Sequence[Path]) -> list[str | None]:
    """The captions of the files that are there, None for the others; every bad one is named."""
    texts: list[str | None] = []
    findings = []
    for path in paths:
        try:
            texts.append(read_caption(path) if path.is_file() else None)
        except InputError as error:  # noqa: PERF203 - so that every bad file is named, not the first
            findings.append(str(error))
    if findings:
        raise InputError.of_many(findings)
    return texts


def _outside(spec: StyleSpec, _run: RunPaths) -> object:
    folder = spec.images_dir(PROJECT)
    sidecars = {sidecar_of(image) for image in list_source_images(folder)}
    return {
        path.relative_to(folder).as_posix(): digest_or_unreadable(path) for path in sorted(sidecars) if path.is_file()
    }


STAGE = Stage(
    name="caption", record=Captions, run=_run, reads=("caption", "trigger"), needs=("preprocess",), outside=_outside,
    output="images", publish="merge", keeps_edits=True,
)  # fmt: skip
