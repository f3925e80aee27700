"""The images that a training is validated on: never trained on, encoded once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from brushset.native.captions import fixed_caption
from brushset.native.dataset import TrainingSet
from brushset.native.latents import CachedLatents, encode_images

if TYPE_CHECKING:
    from brushset.native.settings import DatasetKeys, NativeSettings


@dataclass(frozen=True)
class Heldout:
    """The images that are validated on, encoded."""

    images: TrainingSet
    latents: CachedLatents
    keys: DatasetKeys

    @property
    def captions(self) -> list[str]:
        """What they are said to show."""
        return [self.caption(image) for image in range(len(self.images.images))]

    def caption(self, image: int) -> str:
        """What one of them is said to show."""
        return fixed_caption(self.images.images[image].caption, self.keys)


def encode_heldout(images: TrainingSet, vae: Any, settings: NativeSettings) -> Heldout:
    """Encodes them as they are: nothing is mirrored. See brushset.native.latents."""
    assert settings.heldout is not None, "there are such images"
    still = settings.heldout.model_copy(update={"flip_aug": False})
    latents = encode_images(images, vae, replace(settings, dataset=still), lambda *_: None)
    return Heldout(images, latents, still)
