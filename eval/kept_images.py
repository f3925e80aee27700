"""Images by the bare base, kept across runs: the same prompts and seeds are asked of it for every style and every checkpoint.

A PNG each in the user's cache, under a hash of all that it depends on. Beyond 2 GiB, some 4,500 images of 512 × 512, those
not asked for longest go.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from brushset.errors import EnvironmentProblem
from brushset.files import sha256_json
from brushset.generator import ImageJob, Sampling
from brushset.images import is_flat
from brushset.paths import cache_dir
from brushset.records import BaseFile

if TYPE_CHECKING:
    from PIL.Image import Image

    from eval.sample import Generator

MOST_BYTES = 2 << 30
KEPT = "kept"
"""What an image's `info` has where it was made earlier."""
_ARITHMETIC = 1
"""Raised when brushset.generation makes other images of the same job: what was kept is then not found."""


@dataclass(frozen=True)
class KeptImages:
    """Key → image, in a folder."""

    folder: Path
    most_bytes: int = MOST_BYTES

    def read(self, key: str) -> Image | None:
        """The image, where it is there and whole."""
        from PIL import Image as Pictures
        from PIL import UnidentifiedImageError

        path = self._path(key)
        try:
            with Pictures.open(path) as image:
                found = image.convert("RGB")
            found.info[KEPT] = key
            os.utime(path)
        except (OSError, UnidentifiedImageError):  # not there, or cut short: it is made again
            return None
        return found

    def write(self, key: str, image: Image) -> None:
        """Keeps an image, whole or not at all.

        Raises:
            EnvironmentProblem: the folder cannot be written.
        """
        path = self._path(key)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(temporary, "PNG")
            temporary.replace(path)
        except OSError as error:
            raise EnvironmentProblem(
                f"{path}: an image by the base cannot be kept: {error.strerror}; fix: free the disk or its permissions"
            ) from error

    def forget_old(self) -> None:
        """Deletes the images not asked for longest, down to the limit."""
        files = [(path, path.stat()) for path in self.folder.glob("*/*.png")]
        left = sum(stat.st_size for _, stat in files)
        for path, stat in sorted(files, key=lambda item: item[1].st_mtime):
            if left <= self.most_bytes:
                break
            path.unlink(missing_ok=True)
            left -= stat.st_size

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.png"


@dataclass(frozen=True)
class KeepsBase:
    """A generator whose images without adapters are taken from those kept, and kept. `made_by` is what they depend on besides
    job and sampling.
    """

    generator: Generator
    made_by: str
    kept: KeptImages = field(default_factory=lambda: KeptImages(cache_dir() / "eval" / "images"))

    def generate_jobs(self, jobs: Sequence[ImageJob], sampling: Sampling | None = None) -> Iterator[tuple[int, Image]]:
        """(index of the job, image), as they are made; those kept first."""
        assert sampling is not None
        rest = []
        for index, job in enumerate(jobs):
            image = None if job.mix else self.kept.read(self._key(job, sampling))
            if image is None:
                rest.append(index)
            else:
                yield index, image
        if not rest:
            return
        for at, image in self.generator.generate_jobs([jobs[index] for index in rest], sampling):
            index = rest[at]
            if not jobs[index].mix and not is_flat(image):
                self.kept.write(self._key(jobs[index], sampling), image)
            yield index, image
        if any(not jobs[index].mix for index in rest):
            self.kept.forget_old()

    def _key(self, job: ImageJob, sampling: Sampling) -> str:
        asked = {name: value for name, value in dataclasses.asdict(sampling).items() if name != "batch_size"}
        negative = sampling.negative_prompt if job.negative_prompt is None else job.negative_prompt
        return sha256_json([_ARITHMETIC, self.made_by, job.prompt, job.seed, {**asked, "negative_prompt": negative}])


def keeping_base(generator: Generator, base: BaseFile) -> KeepsBase:
    """The generator on this machine's device, for this base."""
    import torch

    device = "cuda float16" if torch.cuda.is_available() else "cpu float32"
    return KeepsBase(generator, f"{base.sha256} {device}")
