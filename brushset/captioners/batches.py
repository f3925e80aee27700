"""Sends images through a captioner, batch by batch, and remembers every answer.

A kill costs at most one batch; another run of the same images costs nothing (brushset.captioners.answers). Where a
batch does not fit into memory it is halved, and so are those that follow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from brushset.captioners.answers import open_answers
from brushset.errors import BrushsetError, EnvironmentProblem
from brushset.failure import free_memory, is_out_of_memory
from brushset.files import sha256_file, sha256_json
from brushset.images import run_threads
from brushset.protocols import Captioner, Describe, Emit, Subject


def describe_images(captioner: Captioner, subjects: Sequence[Subject], emit: Emit, *, anew: bool = False) -> list[str]:
    """What the captioner says of each image, in order; `anew` asks again where the answer is known.

    Raises:
        EnvironmentProblem: its model is not to be had, or not even one image fits into memory.
        InputError: it cannot caption these images.
    """
    if not subjects:
        return []
    weights = captioner.weights()
    if not weights:
        return [text for texts in _ask(captioner, subjects, emit) for text in texts]
    digests = run_threads(sha256_file, [subject.image for subject in subjects])
    keys = [sha256_json([captioner.name, captioner.settings, weights, digest]) for digest in digests]
    with open_answers() as answers:
        known = {} if anew else answers.read(keys)
        missing = {key: subject for key, subject in zip(keys, subjects, strict=True) if key not in known}
        if known:
            emit("note", text=f"{captioner.name}: {len(known)} captions are known from before")
        open_keys = list(missing)
        for texts in _ask(captioner, list(missing.values()), emit):
            said = dict(zip(open_keys, texts, strict=False))
            answers.write(said)
            known |= said
            open_keys = open_keys[len(texts) :]
    return [known[key] for key in keys]


def _ask(captioner: Captioner, subjects: Sequence[Subject], emit: Emit) -> Iterator[list[str]]:
    """The answers batch by batch, with progress; loads the captioner only where there is something to ask."""
    if not subjects:
        return
    describe = _load(captioner, emit)
    done, size, started = 0, captioner.batch_size, time.monotonic()
    while done < len(subjects):
        texts = _try(describe, subjects[done : done + size])
        if texts is None:
            if size == 1:
                raise EnvironmentProblem(
                    f"{captioner.name}: out of memory with a single image ({captioner.settings}); fix: free the memory, "
                    "or a smaller [caption] model"
                )
            size = max(1, min(size, len(subjects) - done) // 2)
            emit("warning", text=f"{captioner.name}: out of memory; going on with batches of {size}")
            continue
        done += len(texts)
        rate = done / max(time.monotonic() - started, 1e-6)
        left = (len(subjects) - done) / rate
        emit("progress", what="images captioned", done=done, total=len(subjects), per_s=rate, eta_s=left)
        yield texts


def _load(captioner: Captioner, emit: Emit) -> Describe:
    try:
        return captioner.load(emit)
    except BrushsetError:
        raise
    except Exception as error:  # no class covers what the libraries raise when memory ends
        if not is_out_of_memory(error):
            raise
        raise EnvironmentProblem(
            f"{captioner.name}: its model does not fit into memory ({captioner.settings}); fix: free the memory, or a "
            "smaller [caption] model"
        ) from error


def _try(describe: Describe, batch: Sequence[Subject]) -> list[str] | None:
    """The answers, or None where memory ended; by then what the attempt held is freed."""
    try:
        texts = describe(batch)
    except BrushsetError:
        raise
    except Exception as error:  # no class covers what the libraries raise when memory ends
        if not is_out_of_memory(error):
            raise
    else:
        assert len(texts) == len(batch), f"{len(texts)} captions of {len(batch)} images"
        return texts
    free_memory()
    return None
