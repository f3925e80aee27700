"""One style in training: what it draws, its optimizer and its rates; and how styles are put into one pack of models."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from brushset.errors import UsageError
from brushset.native.dataset import Batch, Length, TrainingSet, derive_seed, full_caption, vary_caption
from brushset.native.flat import FlatWeights
from brushset.native.graph import make_graphs
from brushset.native.latents import CachedLatents
from brushset.native.lora import Adapter, attach_adapters
from brushset.native.objective import TIMESTEPS, draw_corruption, min_snr_weights, signal_shares
from brushset.native.optim import TEXT_ENCODER_GROUP, UNET_GROUP, make_optimizer, plan_rates, set_rates, trained_groups
from brushset.native.settings import NativeSettings, TrainingKeys
from brushset.native.step import Draw, Pack
from brushset.native.text import TextSource

if TYPE_CHECKING:
    from brushset.bases.load import Components


@dataclass(frozen=True)
class Style:
    """What one style brings to a pack."""

    settings: NativeSettings
    images: TrainingSet
    length: Length
    latents: CachedLatents


@dataclass
class Session:
    """Everything alive in one style's training. `step` is the last one done; `recent` are the losses of the last epoch's
    worth of batches. `pause` says, of a step, its epoch and whether it ends that, whether its weights are wanted.
    """

    settings: NativeSettings
    images: TrainingSet
    length: Length
    latents: CachedLatents
    adapter: Adapter
    pack: Pack
    optimizer: Any
    rates: list[dict[str, float]]
    weights: torch.Tensor
    step: int = 0
    recent: list[float] = field(default_factory=list)
    pause: Callable[[int, int, bool], bool] = lambda *_: False

    @property
    def row(self) -> int:
        """Its row in the pack."""
        return self.adapter.row

    @property
    def text(self) -> TextSource:
        return self.pack.text

    @property
    def groups(self) -> list[str]:
        """The names of the optimizer's parameter groups."""
        return list(self.rates[0])

    def draw(self, batch: Batch, number: int) -> Draw:
        """All that the `number`-th batch of the run draws."""
        training, keys = self.settings.training, self.settings.dataset
        generator = torch.Generator().manual_seed(derive_seed(training.seed, "batch", number))
        rng = random.Random(derive_seed(training.seed, "captions", number))
        captions = [full_caption(self.images.images[image].caption, keys) for image in batch.images]
        captions = [vary_caption(caption, keys, rng) for caption in captions]
        chosen, spread = self.latents.choose(batch, generator)
        shape = (len(batch.images), *self.latents.mean[batch.bucket].shape[2:])
        corruption = draw_corruption(shape, generator, noise_offset=training.noise_offset)
        return Draw(
            bucket=batch.bucket,
            chosen=chosen,
            spread=spread,
            noise=corruption.noise,
            timesteps=corruption.timesteps,
            weights=self.weights.index_select(0, corruption.timesteps),
            text=self.text.prepare(captions),
        )

    def backward(self, batch: Batch, number: int) -> torch.Tensor:
        """Adds the gradients of the `number`-th batch of the run, and returns its loss, unread."""
        return self.pack.add_gradients({self.row: self.draw(batch, number)})[0]

    def set_rates(self) -> None:
        """Sets the rates of the next update."""
        set_rates(self.optimizer, list(self.rates[self.step].values()))

    def update(self) -> None:
        """Clips, and moves the weights."""
        self.set_rates()
        self.pack.update([self.row], [self.optimizer])


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
    """Prepares all that training one style needs. `models` needs no VAE."""
    return open_pack([Style(settings, images, length, latents)], models)[0]


def open_pack(styles: Sequence[Style], models: Components) -> list[Session]:
    """Puts an adapter a style into the models; their `shared_settings` are equal."""
    recipes = [style.settings.training for style in styles]
    first, groups = recipes[0], list(trained_groups(recipes[0]))
    models.text_encoder.requires_grad_(False)
    adapters = attach_adapters(
        models.unet,
        None if first.network_train_unet_only else models.text_encoder,
        first,
        [torch.Generator().manual_seed(derive_seed(recipe.seed, "weights")) for recipe in recipes],
    )
    flat = _flatten(adapters[0], groups, clip_skip=first.clip_skip)
    _prepare_models(models, first, trains_text=TEXT_ENCODER_GROUP in groups)
    pack = _make_pack(styles, models, adapters, flat)
    sessions = []
    for style, adapter in zip(styles, adapters, strict=True):
        recipe = style.settings.training
        weights = {
            name: flat.parameters(adapter.row, name, split=recipe.optimizer_type == "AdamW8bit") for name in groups
        }
        optimizer, rates = make_optimizer(weights, recipe), plan_rates(recipe, style.length.steps)
        sessions.append(
            Session(
                style.settings, style.images, style.length, style.latents, adapter, pack, optimizer, rates,
                _sample_weights(recipe),
            )
        )  # fmt: skip
    return sessions


def _make_pack(styles: Sequence[Style], models: Components, adapters: Sequence[Adapter], flat: FlatWeights) -> Pack:
    recipes = [style.settings.training for style in styles]
    trains_text = TEXT_ENCODER_GROUP in trained_groups(recipes[0])
    text = TextSource(
        models.tokenizer, models.text_encoder,
        max_token_length=recipes[0].max_token_length, clip_skip=recipes[0].clip_skip,
    )  # fmt: skip
    if not trains_text and not any(style.settings.dataset.shuffle_caption for style in styles):
        held = [(image.caption, style.settings.dataset) for style in styles for image in style.images.images]
        text.remember(["", *(full_caption(caption, keys) for caption, keys in held)])
    device, dtype = flat.master.device, flat.master.dtype
    scales = [1.0 / recipe.gradient_accumulation_steps for recipe in recipes]
    limits = [recipe.max_grad_norm or math.inf for recipe in recipes]
    half = recipes[0].mixed_precision == "fp16"
    return Pack(
        models.unet, text, flat, adapters, [style.latents for style in styles],
        scales=torch.tensor(scales, device=device, dtype=dtype),
        limits=torch.tensor(limits, device=device, dtype=dtype),
        routing=next(iter(adapters[0].unet.values())).routing,
        trains_text=trains_text,
        scalers=[torch.amp.GradScaler("cuda") for _ in styles] if half else (),  # type: ignore[attr-defined]
        graphs=None if half else make_graphs(device),
    )  # fmt: skip


def _flatten(adapter: Adapter, groups: Sequence[str], *, clip_skip: int | None) -> FlatWeights:
    """Layers that training reaches, by group; the others, and those behind the text layer that is used, are idle."""
    skipped = {f"_layers_{12 - back}_" for back in range(1, clip_skip or 1)}
    text = {n: layer for n, layer in adapter.text_encoder.items() if not any(part in n for part in skipped)}
    reached = {TEXT_ENCODER_GROUP: text, UNET_GROUP: adapter.unet}
    trained = {name: reached[name] for name in groups}
    busy = {name for group in trained.values() for name in group}
    return FlatWeights(trained, {name: layer for name, layer in adapter.layers.items() if name not in busy})


def _sample_weights(training: TrainingKeys) -> torch.Tensor:
    """The weight of a sample's loss at each timestep, on the CPU."""
    if not training.min_snr_gamma:
        return torch.ones(TIMESTEPS)
    return min_snr_weights(torch.arange(TIMESTEPS), signal_shares(), training.min_snr_gamma)


def _prepare_models(models: Components, training: TrainingKeys, *, trains_text: bool) -> None:
    """Attention and gradient checkpointing. Nothing in the models drops out, so evaluation mode trains the same."""
    models.unet.to(memory_format=torch.channels_last)
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
