"""LPIPS by AlexNet: how different two images look (Zhang et al. 2018, arXiv 1801.03924), by torchmetrics (Apache-2.0).

Not an embedder: it measures pairs. What metrics see of it is one column a cell, each image's mean distance to the images of
its prompt's other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

from eval.embedder import BATCH_SIZE, Identity
from eval.frames import Frame
from eval.weights import ALEXNET, find_weights

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

Distance = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class PairDistances:
    """A network that measures pairs: two float [N, 3, H, W] from -1 to 1 → N distances."""

    identity: Identity
    load: Callable[[], Distance]
    device: str = "cpu"
    batch_size: int = BATCH_SIZE
    _known: dict[tuple[str, str], float] = field(default_factory=dict, repr=False)

    @cached_property
    def _distance(self) -> Distance:
        return self.load()

    def release(self) -> None:
        """Forgets the network."""
        self.__dict__.pop("_distance", None)

    def within_prompts(self, frames: Sequence[Frame], prompts: Sequence[int]) -> np.ndarray:
        """float32 [N, 1]: the mean distance of each image to the others of its prompt; NaN where it is the only one."""
        import numpy as np

        pairs = [pair for pair in combinations(range(len(frames)), 2) if prompts[pair[0]] == prompts[pair[1]]]
        self._look([(frames[a], frames[b]) for a, b in pairs])
        sums, counts = np.zeros(len(frames)), np.zeros(len(frames))
        for a, b in pairs:
            sums[[a, b]] += self._known[frames[a].key, frames[b].key]
            counts[[a, b]] += 1
        means = np.divide(sums, counts, out=np.full(len(frames), np.nan), where=counts > 0)
        return means.astype(np.float32)[:, None]

    def _look(self, pairs: Sequence[tuple[Frame, Frame]]) -> None:
        """At pairs that were not seen before."""
        missing = {(a.key, b.key): (a, b) for a, b in pairs if (a.key, b.key) not in self._known}
        names = list(missing)
        for start in range(0, len(names), self.batch_size):
            batch = names[start : start + self.batch_size]
            first, second = zip(*(missing[name] for name in batch), strict=True)
            found = self._measure([frame.image for frame in first], [frame.image for frame in second])
            self._known.update(zip(batch, map(float, found), strict=True))

    def _measure(self, first: Sequence[Image], second: Sequence[Image]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            found = self._distance(_pixels(first).to(self.device), _pixels(second).to(self.device))
        return found.flatten().float().cpu().numpy()


def load_lpips(source: str, device: str) -> PairDistances:
    """LPIPS on torchvision's AlexNet. Raises as `find_weights` does."""
    found = find_weights(source, ALEXNET)

    def load() -> Distance:
        import torch

        return alex_lpips(torch.load(found.file, map_location="cpu", weights_only=True)).to(device)

    identity = Identity(f"LPIPS alex (weights {found.sha256[:12]}; no resize)", found.sha256, meaningful=True)
    return PairDistances(identity, load, device)


def alex_lpips(state: dict[str, torch.Tensor]) -> Any:
    """LPIPS as torchmetrics has it, with the features of a torchvision AlexNet's state dict."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    network = _NoTrainLpips(net="alex", pnet_rand=True)
    for number in range(1, 6):
        part = getattr(network.net, f"slice{number}")
        part.load_state_dict({name: state[f"features.{name}"] for name in part.state_dict()})
    return network.eval()


def _pixels(images: Sequence[Image]) -> torch.Tensor:
    import numpy as np
    import torch

    stacked = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
    return torch.from_numpy(stacked / 127.5 - 1).permute(0, 3, 1, 2).contiguous()
