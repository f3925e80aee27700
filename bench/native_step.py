"""The native engine's step on made-up styles: latents of random numbers, captions by number."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Work:
    """What a step is made of, and how it is run."""

    base: Any
    px: int
    batch: int
    rank: int
    device: str = "cpu"
    styles: int = 1
    trains_text: bool = False
    cuda_graphs: bool = False
    compiled: bool = False

    @property
    def samples(self) -> int:
        """Of a step, of all styles."""
        return self.batch * self.styles

    def of(self, **changes: Any) -> Work:
        """The same but for some."""
        return replace(self, **changes)


def make_step(work: Work) -> Callable[[], None]:
    """One whole step of all styles: draws, gradients, clipping, update."""
    from brushset.native.dataset import Batch

    sessions = open_sessions(work, range(work.styles))
    batch = Batch((work.px, work.px), tuple(range(work.batch)))
    number = iter(range(10**9))

    def step() -> None:
        now = next(number)
        draws = {session.row: session.draw(batch, now % 1000) for session in sessions}
        sessions[0].pack.add_gradients(draws)
        for session in sessions:
            session.set_rates()
        sessions[0].pack.update([session.row for session in sessions], [session.optimizer for session in sessions])

    return step


def open_sessions(work: Work, styles: Iterable[int], dtype: torch.dtype | None = None) -> list[Any]:
    """Styles by number, in one pack, their adapters acting; `dtype` of the models: bf16 on a GPU, else float32."""
    import torch

    from brushset.native.session import open_pack

    torch.backends.cudnn.benchmark = work.device != "cpu"
    dtype = dtype or (torch.float32 if work.device == "cpu" else torch.bfloat16)
    models = copy.deepcopy(_load(work.base, dtype))
    for model in (models.unet, models.text_encoder):
        model.to(work.device)
    numbers = list(styles)
    made = [_make_up(work, number, "bf16" if dtype == torch.bfloat16 else "no") for number in numbers]
    sessions = open_pack(made, models, cuda_graphs=work.cuda_graphs, compiled=work.compiled)
    for session, number in zip(sessions, numbers, strict=True):
        _act(session, number)
    sessions[0].pack.flat.refresh()
    return sessions


@functools.lru_cache(maxsize=1)
def _load(base: Any, dtype: torch.dtype) -> Any:
    """The models, once for all steps of a process, on the CPU: a pack puts its adapters into a copy."""
    from brushset.bases.load import load_components

    return load_components(base, device="cpu", dtype=dtype, parts=("unet", "text_encoder", "tokenizer"))


def _act(session: Any, number: int) -> None:
    """B's that are not zero: products with zeros can be faster. Each style's own, whatever company it has."""
    import torch

    generator = torch.Generator().manual_seed(number)
    for layer in session.adapter.layers.values():
        layer.up_master[session.row].copy_(0.01 * torch.randn(layer.up_master[session.row].shape, generator=generator))


def _make_up(work: Work, seed: int, precision: str) -> Any:
    import torch

    from brushset.buckets import BucketRules, plan_buckets
    from brushset.native.dataset import TrainingImage, TrainingSet, plan_length
    from brushset.native.latents import CachedLatents
    from brushset.native.session import Style
    from brushset.native.settings import DatasetKeys, NativeSettings, TrainingKeys

    size = (work.px, work.px)
    images = tuple(TrainingImage(Path(f"{n}.png"), f"style{seed}, picture {n}", size) for n in range(work.batch))
    rules = BucketRules(work.px, 64, 1024, 64, no_upscale=False, enable=False)
    plan = plan_buckets({image.path.name: size for image in images}, rules)
    dataset = DatasetKeys(image_dir="images", resolution=work.px, batch_size=work.batch)
    training = TrainingKeys(
        seed=seed, output_name="style", network_module="networks.lora", network_dim=work.rank,
        network_alpha=work.rank / 2, learning_rate=1e-4, network_train_unet_only=not work.trains_text, sdpa=True,
        min_snr_gamma=5.0, max_train_epochs=1000, cache_latents=True,
        mixed_precision=precision,
    )  # fmt: skip
    side = work.px // 8
    mean = torch.randn(work.batch, 1, 4, side, side, generator=torch.Generator().manual_seed(seed)).to(work.device)
    latents = CachedLatents({size: mean}, None, {n: n for n in range(work.batch)})
    found = TrainingSet(images, plan)
    return Style(NativeSettings(Path(), training, dataset), found, plan_length(plan, dataset, training), latents)
