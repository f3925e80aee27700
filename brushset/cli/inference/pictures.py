"""One PNG an image, never over an older one, with how it was made inside: A1111's text, and ours, which is enough to make
it again (replay.py).

Names are number_mix_seed.png, numbers going on from the highest in the folder. Beside them images.json lists them all,
those of earlier commands too; it alone holds paths of this machine, since a PNG is passed on.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from brushset import __version__, infotext
from brushset.cli.inference.adapters import Adapter
from brushset.errors import BrushsetError, EnvironmentProblem, UsageError
from brushset.files import read_json, shown, write_json
from brushset.records import BaseFile

if TYPE_CHECKING:
    from PIL.Image import Image

    from brushset.generator import ImageJob, Sampling

KEY = "brushset"  # the name of our text chunk
LIST = "images.json"
_NUMBERED = re.compile(r"(\d{5,})_.*\.png")
_MAX_LABEL = 80  # letters; file systems take 255 bytes for a name


@dataclass(frozen=True)
class Making:
    """What all images of a command have in common."""

    base: BaseFile
    sampling: Sampling
    adapters: Mapping[str, Adapter]
    device: str
    dtype: str

    def manifest(self, job: ImageJob) -> dict[str, Any]:
        """All that it takes to make the image again."""
        sampling = self.sampling
        negative = sampling.negative_prompt if job.negative_prompt is None else job.negative_prompt
        return {
            "brushset": __version__,
            "prompt": job.prompt,
            "negative_prompt": negative,
            "seed": job.seed,
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "width": sampling.width,
            "height": sampling.height,
            "scheduler": sampling.scheduler,
            "clip_skip": sampling.clip_skip,
            "method": job.method,
            "options": {name: getattr(job.options, name) for name in job.options.told() if name != "schedules"},
            "base": {"name": model_name(self.base), "sha256": self.base.sha256, "random": self.base.random},
            "adapters": [self._adapter(name, weight) for name, weight in job.mix],
            "device": self.device,
            "dtype": self.dtype,
            "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")}
            | {"python": platform.python_version()},
        }

    def parameters(self, job: ImageJob) -> str:
        """A1111's text. A base that is no single file has no hash there."""
        told = self.manifest(job)
        sampler, schedule_type = infotext.split_sampler(self.sampling.scheduler)
        return infotext.Infotext(
            prompt=job.prompt,
            negative_prompt=told["negative_prompt"],
            steps=self.sampling.steps,
            sampler=sampler,
            schedule_type=schedule_type,
            guidance=self.sampling.guidance,
            seed=job.seed,
            size=(self.sampling.width, self.sampling.height),
            model=model_name(self.base),
            model_hash=self.base.sha256 if self.base.kind == "single-file" else "",
            clip_skip=self.sampling.clip_skip,
            loras=[self._tag(name, weight) for name, weight in job.mix],
            method=job.method or "",
            program=f"brushset {__version__}",
        ).text()

    def _adapter(self, name: str, weight: object) -> dict[str, Any]:
        adapter = self.adapters[name]
        told = {"name": name, "weight": str(weight), "sha256": adapter.sha256, "model_hash": adapter.model_hash}
        if style := adapter.located.style:
            told |= {"style": style.spec.name, "run": style.run.run_id}
        return told

    def _tag(self, name: str, weight: object) -> infotext.LoraTag:
        from brushset.lora.compose.progress import parse_schedule

        adapter, peak = self.adapters[name], parse_schedule(str(weight), name).peak
        text, unet = peak.parts.get("text", peak.whole), peak.parts.get("unet", peak.whole)
        return infotext.LoraTag(adapter.alias, text, unet, adapter.model_hash)


class Folder:
    """Where a command's images go. Nothing that is there is changed but the list."""

    def __init__(self, path: Path) -> None:
        """Looks whether it can be written into; it is made with the first image.

        Raises:
            UsageError: a file is there.
            EnvironmentProblem: it cannot be made or written into.
        """
        self.path = path
        existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        if not existing.is_dir():
            raise UsageError(f"{shown(path)}: is a file, or below one; fix: --out with a folder")
        if not os.access(existing, os.W_OK):
            raise EnvironmentProblem(f"{shown(path)}: cannot be written into; fix: --out elsewhere")
        there = path.iterdir() if path.is_dir() else ()
        numbers = [int(match.group(1)) for file in there if (match := _NUMBERED.fullmatch(file.name))]
        self._first = max(numbers, default=-1) + 1

    def save(self, image: Image, index: int, name: tuple[str, int], text: Mapping[str, str]) -> Path:
        """Writes image `index` of this command, of a mix's label and a seed, with text chunks; returns where."""
        label, seed = name
        number = self._first + index
        while True:
            file = self.path / f"{number:05d}_{_plain(label)[:_MAX_LABEL]}_{seed}.png"
            if self._put(file, _png(image, text)):
                return file
            number += 1  # another command writes into this folder too

    def save_grid(self, image: Image) -> Path:
        """Writes a picture of pictures under the first free name, grid.png or grid_2.png …"""
        number, data = 1, _png(image, {})
        while True:
            file = self.path / ("grid.png" if number == 1 else f"grid_{number}.png")
            if self._put(file, data):
                return file
            number += 1

    def list_images(self, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
        """Adds rows to images.json; nothing where there is none."""
        if not rows:
            return
        file = self.path / LIST
        with FileLock(self.path / ".images.lock"):
            listed: dict[str, Any] = {"images": []}
            with suppress(BrushsetError):  # an unreadable list is no reason to lose images: the PNGs hold it all
                read = read_json(file)
                if isinstance(read, dict) and isinstance(read.get("images"), list):
                    listed = read
            write_json(file, {**settings, "images": [*listed["images"], *rows]})

    def _put(self, file: Path, data: bytes) -> bool:
        """Writes whole or not at all; False where a file of that name is there."""
        temporary = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=self.path)
            temporary = Path(name)
            with os.fdopen(descriptor, "wb") as out:
                out.write(data)
            temporary.chmod(0o644)
            os.link(temporary, file)
        except FileExistsError:
            return False
        except OSError as error:
            raise EnvironmentProblem(
                f"{shown(file)}: cannot be written: {error.strerror}; fix: free the disk, or --out elsewhere"
            ) from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
        return True


def read_manifest(file: Path) -> dict[str, Any]:
    """Our text of a PNG.

    Raises:
        UsageError: no such file, not an image, or one that we did not make.
    """
    from PIL import Image as Images
    from PIL import UnidentifiedImageError

    try:
        with Images.open(file) as image:
            text = getattr(image, "text", {}).get(KEY)
    except FileNotFoundError as error:
        raise UsageError(f"{shown(file)}: no such file") from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Images.DecompressionBombError) as error:
        raise UsageError(f"{shown(file)}: cannot be read as a PNG") from error
    if text is None:
        raise UsageError(f"{shown(file)}: does not say how it was made; only PNGs that inference wrote can be replayed")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{shown(file)}: its {KEY} text is damaged")
    return found


def model_name(base: BaseFile) -> str:
    """What a base is called without where it lies: `v1-5-pruned`, `stable-diffusion-v1-5`, `random:tiny`."""
    name = base.name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return name.removesuffix(".safetensors")


def _png(image: Image, text: Mapping[str, str]) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)  # iTXt by itself where Latin-1 does not hold it
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=chunks)
    return data.getvalue()


def _plain(label: str) -> str:
    """A label as every file system takes it: `anime-0.6+watercolor-0.4`."""
    return re.sub(r"[^A-Za-z0-9.=@+_-]+", "-", label.replace(" + ", "+")).strip("-.")
