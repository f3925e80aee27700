"""From pictures to what each extractor sees of them: every picture is opened once, for all extractors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from brushset.protocols import Emit
from brushset.spec import StyleSpec
from eval import made_up, networks
from eval.embedder import Embedder, Identity
from eval.frames import Frames
from eval.kept import kept_vectors
from eval.layout import Layout
from eval.lpips import PairDistances, load_lpips
from eval.memorisation import COPY_BITS, bits_apart
from eval.metric import ExtractorName
from eval.seen import Seen
from eval.weights import Unavailable


@dataclass(frozen=True)
class Missing:
    """An extractor whose weights are not to be had: its scores are not measured, for this reason."""

    identity: Identity


Extractor = Embedder | PairDistances | Missing


@dataclass(frozen=True)
class Pictures:
    """All that is looked at: files by cell, in the order of the places; files of the references; the places' prompts, by
    number and as CLIP reads them. Every file is fitted to `size`.
    """

    layout: Layout
    size: tuple[int, int]
    cells: Mapping[str, Sequence[Path]]
    trained: Sequence[Path]
    held_out: Sequence[Path]
    others: Mapping[str, Sequence[Path]]
    prompts: Sequence[int]
    texts: Sequence[str]
    frames: Frames = field(default_factory=Frames)


def load_extractors(spec: StyleSpec) -> dict[ExtractorName, Extractor]:
    """Every network, found but not yet loaded; made up for a smoke run, and where `random` is asked for.

    Raises:
        UsageError, EnvironmentProblem, VerificationFailed: a setting names nothing, or weights that are damaged.
    """
    import torch

    settings, kept = spec.evaluate, kept_vectors()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def find(source: str, make: Callable[[str], Extractor], load: Callable[[], Extractor]) -> Extractor:
        try:
            return make(device) if spec.smoke or source == made_up.MADE_UP else load()
        except Unavailable as error:
            return Missing(Identity(source, "", meaningful=False, note=str(error)))

    clip, csd, dinov2 = settings.clip_model, settings.csd_model, settings.dinov2_model
    inception, lpips = settings.inception, settings.lpips_model
    return {
        "clip": find(clip, made_up.make_clip, lambda: networks.load_clip(clip, device, kept)),
        "csd": find(csd, made_up.make_csd, lambda: networks.load_csd(csd, device, kept)),
        "dinov2": find(dinov2, made_up.make_dinov2, lambda: networks.load_dinov2(dinov2, device, kept)),
        "inception": find(inception, made_up.make_inception, lambda: networks.load_inception(inception, device, kept)),
        "lpips": find(lpips, made_up.make_lpips, lambda: load_lpips(lpips, device)),
        "dhash": networks.load_dhash(),
    }


def look_at(pictures: Pictures, extractors: Mapping[ExtractorName, Extractor], emit: Emit) -> dict[ExtractorName, Seen]:
    """What each extractor that is there sees."""
    rows = _rows(pictures, list(_sets(pictures)), extractors, emit)
    found = {
        name: _seen(pictures, rows[name], _texts(pictures, name, extractor))
        for name, extractor in extractors.items()
        if not isinstance(extractor, Missing)
    }
    if "dhash" in found and "dinov2" in found:
        hashes = found["dhash"].trained
        twins = bits_apart(hashes, hashes) <= COPY_BITS
        found["dinov2"] = replace(found["dinov2"], twins=twins)
    return found


def look_further(
    seen: Mapping[ExtractorName, Seen], pictures: Pictures, extractors: Mapping[ExtractorName, Extractor], emit: Emit
) -> dict[ExtractorName, Seen]:
    """What was seen before, and the cells of `pictures` that were not."""
    known = next(iter(seen.values())).cells if seen else {}
    new = [("cells", name, files) for name, files in pictures.cells.items() if name not in known]
    rows = _rows(pictures, new, extractors, emit)
    return {
        name: replace(
            each, layout=pictures.layout, cells={**each.cells, **{key: row for (_, key), row in rows[name].items()}}
        )
        for name, each in seen.items()
    }


def _rows(
    pictures: Pictures, sets: Sequence[tuple[str, str, Sequence[Path]]],
    extractors: Mapping[ExtractorName, Extractor], emit: Emit,
) -> dict[ExtractorName, dict[tuple[str, str], np.ndarray]]:  # fmt: skip
    """Extractor → kind and name of the set → its rows."""
    rows: dict[ExtractorName, dict[tuple[str, str], np.ndarray]] = {name: {} for name in extractors}
    for done, (kind, key, files) in enumerate(sets):
        emit("progress", what="features", done=done, total=len(sets))
        frames = [pictures.frames.frame(file, pictures.size) for file in files]
        for name, extractor in extractors.items():
            if isinstance(extractor, Embedder):
                rows[name][kind, key] = extractor.encode_frames(frames)
            elif isinstance(extractor, PairDistances) and kind == "cells":
                rows[name][kind, key] = extractor.within_prompts(frames, pictures.prompts)
    emit("progress", what="features", done=len(sets), total=len(sets))
    return rows


def _sets(pictures: Pictures) -> Iterator[tuple[str, str, Sequence[Path]]]:
    yield "trained", "", pictures.trained
    yield "held out", "", pictures.held_out
    for style, files in pictures.others.items():
        yield "others", style, files
    for cell, files in pictures.cells.items():
        yield "cells", cell, files


def _texts(pictures: Pictures, name: ExtractorName, extractor: Extractor) -> np.ndarray | None:
    return extractor.encode_texts(pictures.texts) if name == "clip" and isinstance(extractor, Embedder) else None


def _seen(pictures: Pictures, rows: Mapping[tuple[str, str], np.ndarray], texts: np.ndarray | None) -> Seen:
    nothing = np.zeros((0, 0), np.float32)
    return Seen(
        layout=pictures.layout,
        prompts=np.asarray(pictures.prompts),
        cells={key: found for (kind, key), found in rows.items() if kind == "cells"},
        trained=rows.get(("trained", ""), nothing),
        held_out=rows.get(("held out", ""), nothing),
        others={key: found for (kind, key), found in rows.items() if kind == "others"},
        texts=texts,
    )
