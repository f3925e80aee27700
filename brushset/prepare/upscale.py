"""How an image that is too small is enlarged: by Lanczos, or by a super-resolution model of the user's.

The model is any that spandrel recognises by its tensors (ESRGAN, Compact, SwinIR, DAT, HAT and some thirty more), from
a safetensors file. It enlarges by its own factor; Lanczos brings that to the size wanted, down or up. Large images go
through in tiles that overlap, so that memory is bounded by the tile; where even that is too much, tiles are halved.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.bases.header import read_header
from brushset.buckets import Size
from brushset.errors import EnvironmentProblem, UsageError
from brushset.failure import is_out_of_memory
from brushset.files import sha256_file, shown
from brushset.protocols import Emit
from brushset.spec import DatasetSection

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

LANCZOS = "lanczos"
_FIX = f'the path of a super-resolution model such as ESRGAN ×4, a .safetensors file, or "{LANCZOS}"'

# ESRGAN x4 in fp32 takes some 1 GB for 256² pixels, 4 GB for 512². A CPU gains nothing from larger tiles, and the
# system kills a process that takes too much where a GPU only says no.
_TILE_PX = {"cpu": 256, "cuda": 512}
_LEAST_TILE_PX = 32
# Beyond the reach of most of what a pixel depends on; a test holds tiles against the whole.
_MARGIN_PX = 32


def upscaler_path(dataset: DatasetSection, project: Path) -> Path | None:
    """The model that the style names, relative to the project; None for Lanczos."""
    return None if dataset.upscaler == LANCZOS else project / Path(dataset.upscaler).expanduser()


def upscaler_digest(path: Path | None) -> str:
    """What results depend on: the model's SHA-256.

    Raises:
        UsageError: there is no such file, or it is no safetensors file.
    """
    if path is None:
        return LANCZOS
    _check_file(path)
    return sha256_file(path)


def check_upscaler(dataset: DatasetSection, project: Path) -> None:
    """Tells a wrong `upscaler` before anything is done. Raises as `upscaler_digest` does."""
    if path := upscaler_path(dataset, project):
        _check_file(path)


@dataclass
class ModelUpscaler:
    """A loaded model. `__call__` is safe from several threads: images take turns."""

    name: str
    scale: int
    model: Any
    device: str
    tile_px: int
    emit: Emit
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(self, image: Image, size: Size) -> Image:
        """`image` at `size`.

        Raises:
            EnvironmentProblem: not even the smallest tile fits into memory.
        """
        from PIL import Image as Pillow

        with self._turn:
            enlarged = Pillow.fromarray(self._enlarge(image))
        return enlarged if enlarged.size == size else enlarged.resize(size, Pillow.Resampling.LANCZOS)

    def _enlarge(self, image: Image) -> np.ndarray:
        """uint8 [H · scale, W · scale, 3]."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]
        while True:
            try:
                return self._in_tiles(pixels)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve_tile(max(image.size))

    def _in_tiles(self, pixels: torch.Tensor) -> np.ndarray:
        import numpy as np

        height, width = pixels.shape[2:]
        scale = self.scale
        result = np.empty((height * scale, width * scale, 3), dtype=np.uint8)
        for top, bottom in _spans(height, self.tile_px):
            for left, right in _spans(width, self.tile_px):
                first_row, first_column = max(0, top - _MARGIN_PX), max(0, left - _MARGIN_PX)
                tile = pixels[:, :, first_row : bottom + _MARGIN_PX, first_column : right + _MARGIN_PX]
                made = self._run_model(tile)
                made = made[(top - first_row) * scale :, (left - first_column) * scale :]
                place = result[top * scale : bottom * scale, left * scale : right * scale]
                place[:] = made[: place.shape[0], : place.shape[1]]
        return result

    def _run_model(self, tile: torch.Tensor) -> np.ndarray:
        made = self.model(tile.to(self.device))[0].permute(1, 2, 0)
        result: np.ndarray = made.mul(255).round().byte().cpu().numpy()
        return result

    def _halve_tile(self, side_px: int) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.empty_cache()
        smaller = min(self.tile_px, side_px) // 2
        if smaller < _LEAST_TILE_PX:
            raise EnvironmentProblem(
                f"{self.name}: out of memory on {self.device} even in tiles of {_LEAST_TILE_PX} px; "
                f'fix: free memory, or [dataset] upscaler = "{LANCZOS}"'
            )
        self.tile_px = smaller
        self.emit("warning", text=f"{self.name}: out of memory on {self.device}; goes on in tiles of {smaller} px")


def load_upscaler(path: Path, emit: Emit) -> ModelUpscaler:
    """The model at `path`, on the GPU where there is one.

    Raises:
        UsageError: no safetensors file, a model that spandrel does not know, or one that does not enlarge RGB images.
    """
    import torch
    from safetensors.torch import load_file
    from spandrel import ModelLoader, ModelTiling, UnsupportedModelError, canonicalize_state_dict

    _check_file(path)
    try:
        model: Any = ModelLoader().load_from_state_dict(canonicalize_state_dict(load_file(path)))
    except UnsupportedModelError as error:
        raise _unfit(path, "no architecture that spandrel knows") from error
    except Exception as error:  # an architecture's loader, fed with another's tensors, raises anything
        raise _unfit(path, f"spandrel cannot load it ({_first_line(error)})") from error
    if why := _why_unfit(model):
        raise _unfit(path, why)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # A model that looks at the whole image, or tiles by itself, gets it whole as long as memory lasts.
    tile_px = _TILE_PX[device] if model.tiling is ModelTiling.SUPPORTED else 1 << 20
    name = f"{path.stem} ({model.architecture.name} ×{model.scale})"
    return ModelUpscaler(name, model.scale, model.to(device).eval(), device, tile_px, emit)


def _why_unfit(model: Any) -> str:
    """Why a model that spandrel has loaded is none for us; empty where it is one."""
    kind = f"{model.architecture.name}, made for {getattr(model, 'purpose', 'nothing')}"
    if model.purpose in {"Inpainting", "FaceSR"}:
        return f"it is {kind}, not for whole images"
    if model.scale < 2:
        return f"it is {kind}, and does not enlarge (×{model.scale})"
    if (model.input_channels, model.output_channels) != (3, 3):
        return f"it takes {model.input_channels} channels and gives {model.output_channels}, not RGB"
    return ""


def _unfit(path: Path, why: str) -> UsageError:
    return UsageError(f"[dataset] upscaler = {shown(path)}: {why}; fix: {_FIX}")


def _check_file(path: Path) -> None:
    try:
        read_header(path)
    except UsageError as error:
        fix = "" if "fix:" in str(error) else f"; fix: {_FIX}"
        raise UsageError(f"[dataset] upscaler = {error}{fix}") from error


def _spans(length: int, most: int) -> Iterator[tuple[int, int]]:
    """`length` in as few nearly equal parts of at most `most` as there can be."""
    parts = -(-length // most)
    edges = [index * length // parts for index in range(parts + 1)]
    return itertools.pairwise(edges)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
