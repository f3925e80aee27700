"""The training itself: batch → noise → loss → gradients → update, as an iterator over updates.

One update follows `gradient_accumulation_steps` batches, or fewer at an epoch's end. All that a batch draws (noise,
timesteps, mirrors, captions) depends on the seed and the batch's number alone. Correct first: the loss is read back
after each batch, and frozen weights run under autocast, as in sd-scripts.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brushset.errors import TrainerFailed, UsageError
from brushset.native.dataset import (
    Batch,
    Length,
    TrainingSet,
    derive_seed,
    epoch_batches,
    full_caption,
    vary_caption,
)
from brushset.native.latents import CachedLatents
from brushset.native.objective import corrupt, draw_corruption, noise_loss, signal_shares
from brushset.native.optim import TEXT_ENCODER_GROUP, make_optimizer, make_scheduler
from brushset.native.settings import NativeSettings, TrainingKeys
from brushset.native.text import TextSource

if TYPE_CHECKING:
    import torch

    from brushset.bases.load import Components
    from brushset.native.lora import Adapter


@dataclass(frozen=True)
class Update:
    """One optimizer step, done. `loss` is the mean over its batches, `average` over the last epoch's worth of them;
    `rates` are the learning rates that it was made with, by parameter group.
    """

    step: int
    epoch: int
    loss: float
    average: float
    rates: dict[str, float]
    ends_epoch: bool


@dataclass
class Session:
    """Everything alive in one training."""

    settings: NativeSettings
    images: TrainingSet
    latents: CachedLatents
    unet: Any
    text: TextSource
    adapter: Adapter
    groups: list[str]
    optimizer: Any
    scheduler: Any
    accelerator: Any
    shares: torch.Tensor

    def backward(self, batch: Batch, number: int) -> float:
        """Adds the gradients of the `number`-th batch of the run, and returns its loss."""
        import torch

        seed, keys = self.settings.training.seed, self.settings.dataset
        generator = torch.Generator().manual_seed(derive_seed(seed, "batch", number))
        rng = random.Random(derive_seed(seed, "captions", number))
        captions = [full_caption(self.images.images[image].caption, keys) for image in batch.images]
        captions = [vary_caption(caption, keys, rng) for caption in captions]
        latents = self.latents.take(batch, generator)
        corruption = draw_corruption(latents, generator, noise_offset=self.settings.training.noise_offset)
        noisy = corrupt(latents, corruption, self.shares)
        with self.accelerator.autocast():
            with torch.set_grad_enabled(TEXT_ENCODER_GROUP in self.groups):
                states = self.text.encode(captions)
            predicted = self.unet(noisy, corruption.timesteps, states, return_dict=False)[0]
        gamma = self.settings.training.min_snr_gamma
        loss = noise_loss(predicted, corruption, self.shares, min_snr_gamma=gamma)
        self.accelerator.backward(loss)
        return float(loss.item())

    def update(self) -> dict[str, float]:
        """Clips, moves the weights, and returns the rates that they were moved with."""
        rates = dict(zip(self.groups, self.scheduler.get_last_lr(), strict=True))
        if self.settings.training.max_grad_norm:
            self.accelerator.clip_grad_norm_(list(self.adapter.parameters()), self.settings.training.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rates


def check_device(training: TrainingKeys, device: str) -> None:
    """Refuses what the device cannot do, before any model is loaded.

    Raises:
        UsageError: half precision of the fp16 kind, or xformers, without a GPU.
    """
    if device == "cpu" and training.mixed_precision == "fp16":
        raise UsageError('mixed_precision = "fp16" needs a CUDA device; set "bf16" or "no"')
    if device == "cpu" and training.xformers:
        raise UsageError("xformers = true needs a CUDA device; set sdpa = true")


def open_session(
    settings: NativeSettings, images: TrainingSet, length: Length, latents: CachedLatents, models: Components
) -> Session:
    """Puts the adapter into the models and prepares all that training needs. `models` needs no VAE."""
    import torch

    from brushset.native.lora import attach_adapter

    training = settings.training
    accelerator = _make_accelerator(training, models.unet.device)
    generator = torch.Generator().manual_seed(derive_seed(training.seed, "weights"))
    models.text_encoder.requires_grad_(False)
    adapter = attach_adapter(
        models.unet, None if training.network_train_unet_only else models.text_encoder, training, generator
    )
    optimizer, groups = make_optimizer(adapter, training)
    for name, layers in (("unet", adapter.unet), ("textencoder", adapter.text_encoder)):
        for layer in layers.values():
            layer.requires_grad_(name in groups)
            layer.frozen.requires_grad_(False)
    _prepare_models(models, training, trains_text=TEXT_ENCODER_GROUP in groups)
    scheduler = make_scheduler(optimizer, training, length.steps)
    optimizer, scheduler = accelerator.prepare(optimizer, scheduler)
    text = TextSource(
        models.tokenizer, models.text_encoder, max_token_length=training.max_token_length, clip_skip=training.clip_skip
    )
    session = Session(
        settings, images, latents, models.unet, text, adapter, groups, optimizer, scheduler, accelerator,
        signal_shares().to(models.unet.device),
    )  # fmt: skip
    if TEXT_ENCODER_GROUP not in groups and not settings.dataset.shuffle_caption:
        with accelerator.autocast():
            text.remember(["", *(full_caption(image.caption, settings.dataset) for image in images.images)])
    return session


def run_updates(session: Session, length: Length) -> Iterator[Update]:
    """Trains, one update at a time, to the end.

    Raises:
        TrainerFailed: the loss is NaN or infinite; nothing after it would be worth keeping.
    """
    training, keys = session.settings.training, session.settings.dataset
    recent: deque[float] = deque(maxlen=length.batches_per_epoch)
    step = number = 0
    for epoch in range(1, length.epochs + 1):
        batches = epoch_batches(session.images, keys, seed=training.seed, epoch=epoch)
        gathered: list[float] = []
        for position, batch in enumerate(batches, start=1):
            gathered.append(_finite(session.backward(batch, number), step + 1, training))
            recent.append(gathered[-1])
            number += 1
            if position % training.gradient_accumulation_steps and position != len(batches):
                continue
            rates = session.update()
            step += 1
            yield Update(
                step=step,
                epoch=epoch,
                loss=sum(gathered) / len(gathered),
                average=sum(recent) / len(recent),
                rates=rates,
                ends_epoch=position == len(batches),
            )
            gathered = []
            if step == length.steps:
                return


def _finite(loss: float, step: int, training: TrainingKeys) -> float:
    if not math.isfinite(loss):
        raise TrainerFailed(
            f"step {step}: the loss is {loss} (unet_lr {training.unet_rate}, mixed_precision "
            f'"{training.mixed_precision}"); lower the learning rates, or set mixed_precision = "bf16"'
        )
    return loss


def _make_accelerator(training: TrainingKeys, device: torch.device) -> Any:
    """Accelerate for one process on `device`. Its precision is process-wide, so an earlier training's is dropped."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - there is no public way
    return Accelerator(
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        cpu=device.type == "cpu",
    )


def _prepare_models(models: Components, training: TrainingKeys, *, trains_text: bool) -> None:
    """Attention and gradient checkpointing. Nothing in the models drops out, so evaluation mode trains the same."""
    models.unet.eval()
    models.text_encoder.eval()
    if training.xformers:
        models.unet.enable_xformers_memory_efficient_attention()
    elif not training.sdpa:
        from diffusers.models.attention_processor import AttnProcessor

        models.unet.set_attn_processor(AttnProcessor())
    if training.gradient_checkpointing:
        models.unet.enable_gradient_checkpointing()
        if trains_text:
            models.text_encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            models.text_encoder.train()  # transformers checkpoints in training mode alone
