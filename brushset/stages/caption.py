"""One line of text an image, the trigger first. Who is heard, in this order:

    edited      the caption in the run's images/, where it is not as this stage left it: the user changed it
    sidecar     the .txt beside the user's image; an empty one says nothing
    captioner   the one that [caption] names

Style words go from what a machine wrote; what the user wrote stays as it is, and is told of. A caption that was edited
stays so until its file is deleted. Held-out images are captioned too: validation and evaluation ask what is on them.
Before anything is published the captions are held against what sd-scripts will make of them (brushset.captions.checks).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from brushset.bases.tokenizer import load_clip_tokenizer
from brushset.captioners import CAPTIONERS
from brushset.captioners.batches import describe_images
from brushset.captions.checks import CaptionSet, check_captions, find_unreadable
from brushset.captions.earlier import EDITED, SIDECAR, Earlier, look_back, note_written
from brushset.captions.effective import CaptionRules, effective_caption
from brushset.captions.style_words import strip_style_words
from brushset.captions.text import file_content, read_captions, refuse_links_out, with_trigger
from brushset.errors import InputError
from brushset.images import digest_or_unreadable, sidecar_of
from brushset.listing import list_source_images
from brushset.paths import PROJECT, RunPaths
from brushset.pipeline import Stage, StageContext
from brushset.protocols import Captioner, Subject
from brushset.records import Caption, Captions, Prepared, PreparedImage
from brushset.spec import StyleSpec

_OWN = frozenset({EDITED, SIDECAR})
_RULES = ("keep_tokens", "shuffle_caption", "max_token_length", "extra")


def _run(context: StageContext) -> Captions:
    spec, prepared = context.spec, context.get(Prepared)
    images = (*prepared.images, *prepared.heldout)
    captioner = CAPTIONERS[spec.caption.captioner](spec.caption)
    signature = f"{captioner.name} ({captioner.settings})" if captioner.settings else captioner.name
    earlier = look_back(context.run, [image.name for image in images], context.previous)
    given = _given(context, images, earlier, signature)
    missing = [image for image in images if image.name not in given]
    weights = earlier.record.weights if earlier.record and earlier.record.captioner == signature else ""
    if missing:
        weights = captioner.weights()
        given |= _described(context, missing, captioner)
    captions = tuple(_caption(image.name, *given[image.name], spec) for image in images)
    record = _checked(captions, signature, weights, spec)
    for caption in captions:
        path = context.workdir / sidecar_of(Path(caption.image))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_content(caption.text))  # the pipeline publishes it, whole or not at all
    _require_readable(context.workdir, captions)
    _tell(context, record)
    note_written(context.run, record)
    return record


def _given(
    context: StageContext, images: Sequence[PreparedImage], earlier: Earlier, signature: str
) -> dict[str, tuple[str, str]]:
    """Text and source of the images that need no captioner."""
    folder = context.spec.images_dir(PROJECT)
    paths = [sidecar_of(folder / image.source) for image in images]
    refuse_links_out(paths, folder)
    sidecars = read_captions(paths)
    given: dict[str, tuple[str, str]] = {}
    for image, sidecar in zip(images, sidecars, strict=True):
        stem = Path(image.name).stem
        edit = earlier.edit_of(stem)
        known = None if context.forced else earlier.said_by(signature, stem)
        if edit is not None:
            given[image.name] = (edit, EDITED)
        elif sidecar:
            given[image.name] = (sidecar, SIDECAR)
        elif known is not None:
            given[image.name] = (known, context.spec.caption.captioner)
    return given


def _described(
    context: StageContext, missing: Sequence[PreparedImage], captioner: Captioner
) -> dict[str, tuple[str, str]]:
    folder = context.spec.images_dir(PROJECT)
    subjects = [Subject(context.run.images / image.name, folder / image.source) for image in missing]
    said = describe_images(captioner, subjects, context.emit, anew=context.forced)
    return {image.name: (text, captioner.name) for image, text in zip(missing, said, strict=True)}


def _caption(image: str, said: str, source: str, spec: StyleSpec) -> Caption:
    words = () if source in _OWN else spec.caption.all_style_words
    stripped = strip_style_words(said, words, trigger=spec.trigger)
    text = with_trigger(stripped.text, spec.trigger)
    return Caption(image=image, text=text, source=source, said=said, stripped=stripped.words)


def _checked(captions: Sequence[Caption], signature: str, weights: str, spec: StyleSpec) -> Captions:
    """The record, with everything found. Raises an InputError of all that would be trained otherwise than meant."""
    rules = CaptionRules.of(spec)
    encode, decode = load_clip_tokenizer()
    counted = tuple(
        caption.model_copy(update={"tokens": len(encode(effective_caption(caption.text, rules)))})
        for caption in captions
    )
    findings = check_captions(CaptionSet(counted, rules, encode, decode))
    if errors := [finding.text for finding in findings if finding.level == "error"]:
        raise InputError.of_many(errors)
    kept = Counter(
        word
        for caption in captions
        if caption.source in _OWN
        for word in strip_style_words(caption.text, spec.caption.all_style_words, trigger=spec.trigger).words
    )
    return Captions(
        captioner=signature, weights=weights, trigger=spec.trigger, captions=counted, findings=tuple(findings),
        token_limit=rules.max_token_length, kept_style_words=dict(kept.most_common()),
    )  # fmt: skip


def _require_readable(folder: Path, captions: Sequence[Caption]) -> None:
    """Looks at the files that will be published as sd-scripts will."""
    contents = {caption.image: (folder / sidecar_of(Path(caption.image))).read_bytes() for caption in captions}
    if errors := find_unreadable(contents):
        raise InputError.of_many(errors)


def _tell(context: StageContext, record: Captions) -> None:
    counts = sorted(Counter(caption.source for caption in record.captions).items())
    context.emit("note", text="captions: " + ", ".join(f"{count} {source}" for source, count in counts))
    if words := count_stripped(record):
        changed = sum(bool(caption.stripped) for caption in record.captions)
        text = f"style words taken from {changed} captions: {_named(words)}"
        context.emit("note", text=f"{text}; the trigger shall carry the style")
    if record.kept_style_words:
        text = f"your own captions name the style: {_named(record.kept_style_words)}"
        context.emit("note", text=f"{text}; kept as they are, but what is named is not bound to the trigger")
    for finding in record.findings:
        context.emit("warning" if finding.level == "warning" else "note", text=finding.text)


def count_stripped(record: Captions) -> dict[str, int]:
    """Style word → how often it was taken from captions, the most frequent first."""
    return dict(Counter(word for caption in record.captions for word in caption.stripped).most_common())


def _named(words: Mapping[str, int]) -> str:
    shown = [f"{word} {count}×" for word, count in list(words.items())[:8]]
    return ", ".join(shown) + (", …" if len(words) > len(shown) else "")


def _outside(spec: StyleSpec, _run: RunPaths) -> object:
    folder = spec.images_dir(PROJECT)
    sidecars = {sidecar_of(image) for image in list_source_images(folder)}
    return {
        path.relative_to(folder).as_posix(): digest_or_unreadable(path) for path in sorted(sidecars) if path.is_file()
    }


STAGE = Stage(
    name="caption", record=Captions, run=_run, reads=("caption", "trigger", *(f"train.{name}" for name in _RULES)),
    needs=("preprocess",), outside=_outside, output="images", publish="merge", keeps_edits=True, version=2,
)  # fmt: skip
