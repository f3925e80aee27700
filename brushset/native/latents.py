"""The images as the UNet sees them: encoded once, kept on the device, taken by index.

An image takes 64 KB in float32 at 512 px, so a set of hundreds costs tens of megabytes and no step waits for a disk.
`cache_latents = true` keeps one sample of the VAE's posterior, as sd-scripts does; `false` keeps its mean and
deviation and draws anew each time, which is what encoding the pixels again at every step amounts to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brushset.buckets import Placement, Size
from brushset.errors import InputError, TrainerFailed
from brushset.native.dataset import Batch, TrainingSet, derive_seed
from brushset.native.settings import NativeSettings

if TYPE_CHECKING:
    import torch

VAE_SCALE = 0.18215
"""Stable Diffusion 1's factor between the VAE's latents and the UNet's."""


@dataclass(frozen=True)
class CachedLatents:
    """Scaled latents, float32, on the device. `rows` maps an image to its bucket's row; where images are mirrored too,
    orientation 1 holds the mirror images; `deviation` is None where one sample is kept.
    """

    mean: dict[Size, torch.Tensor]  # [images, orientations, 4, h/8, w/8]
    deviation: dict[Size, torch.Tensor] | None
    rows: dict[int, int]

    def choose(self, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Which latents a batch takes, int64 [N] into images and orientations as one axis, and the draw [N, 4, h/8, w/8]
        that its deviations are multiplied by, both on the CPU. Mirrors and draws with `generator`, which is the CPU's.
        """
        import torch

        shape = self.mean[batch.bucket].shape
        chosen = torch.tensor([self.rows[image] * shape[1] for image in batch.images])
        if shape[1] == 2:
            chosen = chosen + torch.randint(0, 2, chosen.shape, generator=generator)
        if self.deviation is None:
            return chosen, None
        return chosen, torch.randn((len(batch.images), *shape[2:]), generator=generator)

    def take(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """The latents of a batch, [N, 4, h/8, w/8], as `choose` has them."""
        chosen, draw = self.choose(batch, generator)
        mean = self.mean[batch.bucket].flatten(0, 1)
        latents = mean.index_select(0, chosen.to(mean.device))
        if self.deviation is None or draw is None:
            return latents
        spread = self.deviation[batch.bucket].flatten(0, 1).index_select(0, chosen.to(mean.device))
        return latents + spread * draw.to(mean.device)


def encode_images(
    images: TrainingSet, vae: Any, settings: NativeSettings, on_progress: Callable[[int, int], None]
) -> CachedLatents:
    """Encodes all images with `vae`, in its dtype and on its device, in batches of vae_batch_size.

    Raises:
        TrainerFailed: the VAE made NaN or infinity, as some do in half precision.
    """
    import torch

    training = settings.training
    generator = torch.Generator().manual_seed(derive_seed(training.seed, "vae"))
    mean: dict[Size, torch.Tensor] = {}
    deviation: dict[Size, torch.Tensor] = {}
    rows, done = {}, 0
    for bucket in images.plan.counts:
        members = images.members(bucket)
        rows.update({image: row for row, image in enumerate(members)})
        parts = []
        for start in range(0, len(members), training.vae_batch_size):
            chosen = members[start : start + training.vae_batch_size]
            pixels = [_load_placed(images, index) for index in chosen]
            parts.append(_encode(vae, pixels, mirror=settings.dataset.flip_aug))
            done += len(chosen)
            on_progress(done, len(images.images))
        mean[bucket] = torch.cat([part[0] for part in parts])
        deviation[bucket] = torch.cat([part[1] for part in parts])
        if not bool(torch.isfinite(mean[bucket]).all()):
            raise TrainerFailed(
                f"the VAE made NaN or infinity of images in {bucket[0]}x{bucket[1]}; set no_half_vae = true"
            )
    if not training.cache_latents:
        return CachedLatents(mean, deviation, rows)
    for bucket, value in mean.items():
        draw = torch.randn(value.shape, generator=generator).to(value.device)
        value.addcmul_(deviation[bucket], draw)
    return CachedLatents(mean, None, rows)


def load_pixels(path: Path, place: Placement) -> torch.Tensor:
    """An image fitted to its bucket, float32 [3, h, w] in -1 … 1.

    Scaled by OpenCV's area filter where it shrinks and Pillow's Lanczos where it grows, as sd-scripts does.
    """
    import numpy as np
    import torch
    from PIL import Image

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise InputError(f"{path}: cannot be decoded: {error}; remove or replace it") from error
    array = np.asarray(image)
    if image.size != place.resized:
        array = _resize(array, place.resized)
    left, top = place.crop
    width, height = place.bucket
    cut = array[top : top + height, left : left + width].copy()  # Pillow's own memory is read-only
    return torch.from_numpy(cut).permute(2, 0, 1).float() / 127.5 - 1.0


def _resize(array: Any, size: Size) -> Any:
    import cv2
    import numpy as np
    from PIL import Image

    height, width = array.shape[:2]
    if width >= size[0] and height >= size[1]:
        return cv2.resize(array, size, interpolation=cv2.INTER_AREA)
    return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.LANCZOS))


def _load_placed(images: TrainingSet, index: int) -> torch.Tensor:
    path = images.images[index].path
    return load_pixels(path, images.plan.placements[path.name])


def _encode(vae: Any, pixels: Sequence[torch.Tensor], *, mirror: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the posterior, scaled, [N, orientations, 4, h/8, w/8]."""
    import torch

    batch = torch.stack(list(pixels)).to(device=vae.device, dtype=vae.dtype)
    orientations = [batch, batch.flip(3)] if mirror else [batch]
    with torch.no_grad():
        posteriors = [vae.encode(each).latent_dist for each in orientations]
    means = torch.stack([each.mean.float() for each in posteriors], dim=1)
    deviations = torch.stack([each.std.float() for each in posteriors], dim=1)
    return means * VAE_SCALE, deviations * VAE_SCALE
