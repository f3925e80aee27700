"""One style in training: what it draws, its optimizer and its rates; and how styles are put into one pack of models."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from brushset.errors import UsageError
from brushset.native.blocks import forget_activations, shorten_text_encoder, shorten_unet, text_projections
from brushset.native.captions import When, fixed_caption, varies, vary_caption
from brushset.native.compiling import compile_blocks
from brushset.native.dataset import Batch, Length, TrainingSet, derive_seed, epoch_batches
from brushset.native.flat import FlatWeights
from brushset.native.graph import make_graphs
from brushset.native.latents import CachedLatents
from brushset.native.lora import Adapter, Shape, attach_adapters
from brushset.native.noise import draw_noise
from brushset.native.objective import huber_thresholds, sample_weights
from brushset.native.optim import TEXT_ENCODER_GROUP, UNET_GROUP, make_optimizer, plan_rates, set_rates, trained_groups
from brushset.native.settings import NativeSettings, TrainingKeys
from brushset.native.step import Draw, Pack
from brushset.native.text import Seen, TextSource

if TYPE_CHECKING:
    from brushset.bases.load import Components
    from brushset.native.heldout import Heldout


MOST_TEXTS = 4096
"""Captions that are kept encoded, at most: 0.5 GB of bf16 states."""


@dataclass(frozen=True)
class Style:
    """What one style brings to a pack."""

    settings: NativeSettings
    images: TrainingSet
    length: Length
    latents: CachedLatents
    heldout: Heldout | None = None


@dataclass
class Session:
    """Everything alive in one style's training. `step` is the last one done; `recent` are the losses of the last epoch's
    worth of batches, `pending` those of batches that no update has followed yet. `pause` says, of a step, its epoch and
    whether it ends that, whether its weights are wanted. One that was `stopped` is trained no further; of one with
    `live_text` the captions are encoded as they are drawn.
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
    thresholds: torch.Tensor | None = None
    heldout: Heldout | None = None
    step: int = 0
    recent: list[float] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)
    pause: Callable[[int, int, bool], bool] = lambda *_: False
    stopped: bool = False
    live_text: bool = False

    @property
    def row(self) -> int:
        """Its row in the pack."""
        return self.adapter.row

    @property
    def text(self) -> TextSource:
        return self.pack.text

    @property
    def clip_skip(self) -> int:
        """Which of the text encoder's layers is seen, from the end; 1 is its own output."""
        return self.settings.training.clip_skip or 1

    @property
    def groups(self) -> list[str]:
        """The names of the optimizer's parameter groups."""
        return list(self.rates[0])

    def draw(self, batch: Batch, number: int) -> Draw:
        """All that the `number`-th batch of the run draws."""
        training = self.settings.training
        generator = torch.Generator().manual_seed(derive_seed(training.seed, "batch", number))
        chosen, spread = self.latents.choose(batch, generator)
        shape = (len(batch.images), *self.latents.mean[batch.bucket].shape[2:])
        drawn = draw_noise(shape, generator, training)
        return Draw(
            bucket=batch.bucket,
            chosen=chosen,
            spread=spread,
            noise=drawn.noise,
            timesteps=drawn.timesteps,
            weights=self.weights.index_select(0, drawn.timesteps),
            text=self.text.prepare(self.captions(batch, number), self.clip_skip, live=self.live_text),
            added=drawn.added,
            thresholds=None if self.thresholds is None else self.thresholds.index_select(0, drawn.timesteps),
        )

    def captions(self, batch: Batch, number: int) -> list[str]:
        """What the samples of the `number`-th batch of the run see."""
        rng = random.Random(derive_seed(self.settings.training.seed, "captions", number))
        keys, when = self.settings.dataset, self._when(number)
        return [vary_caption(self.images.images[image].caption, keys, rng, when) for image in batch.images]

    def foresee_captions(self) -> set[str] | None:
        """All captions that the run will draw, each once; None where they vary so much that encoding them beforehand
        would be more than half the work of encoding each sample's, or more than MOST_TEXTS.
        """
        keys, length, seed = self.settings.dataset, self.length, self.settings.training.seed
        if not varies(keys):
            return {"", *(fixed_caption(image.caption, keys) for image in self.images.images)}
        most = min(MOST_TEXTS, length.batches_per_epoch * length.epochs * keys.batch_size // 2)
        seen: set[str] = set()
        for epoch in range(1, length.epochs + 1):
            batches = epoch_batches(self.images, keys, seed=seed, epoch=epoch)
            for number, batch in enumerate(batches, (epoch - 1) * length.batches_per_epoch):
                seen.update(self.captions(batch, number))
            if len(seen) > most:
                return None
        return seen

    def _when(self, number: int) -> When:
        """How far training is before the `number`-th batch of the run."""
        epoch, position = divmod(number, self.length.batches_per_epoch)
        done = epoch * self.length.steps_per_epoch + position // self.settings.training.gradient_accumulation_steps
        return When(epoch + 1, done, self.length.steps)

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


def open_pack(
    styles: Sequence[Style], models: Components, *, cuda_graphs: bool = True, compiled: bool = False
) -> list[Session]:
    """Puts an adapter a style into the models; their `shared_settings` are equal. On a GPU steps are captured, but for
    fp16, whose scaler reads from the device; see brushset.native.compiling for what is compiled.
    """
    recipes = [style.settings.training for style in styles]
    first, groups = recipes[0], list(trained_groups(recipes[0]))
    models.text_encoder.requires_grad_(False)
    adapters = attach_adapters(
        models.unet,
        None if first.network_train_unet_only else models.text_encoder,
        [Shape.of(each, torch.Generator().manual_seed(derive_seed(each.seed, "weights"))) for each in recipes],
    )
    flat = _flatten(adapters[0], groups, [each.clip_skip or 1 for each in recipes])
    _prepare_models(models, first, trains_text=TEXT_ENCODER_GROUP in groups)
    pack = _make_pack(styles, models, adapters, flat)
    if first.sdpa:  # others bring their own attention
        pack.text_product = shorten_unet(models.unet, adapters[0].unet)
        if TEXT_ENCODER_GROUP in groups:
            shorten_text_encoder(models.text_encoder)
    if compiled:
        compile_blocks(models.unet)
    if cuda_graphs and not pack.scalers:
        pack.graphs = make_graphs(pack.device)
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
                sample_weights(recipe), huber_thresholds(recipe), style.heldout,
            )
        )  # fmt: skip
    _cache_text(sessions)
    return sessions


def _cache_text(sessions: Sequence[Session]) -> None:
    """Encodes once what samples will see, of an encoder that is not trained. What a seed draws is known beforehand, so
    a style that shuffles is cached too where it draws few wordings; else its own samples are encoded as they come, and no
    other style's. Either way samples see what sd-scripts would show them: a fixed number of wordings an image, drawn once,
    would be another distribution.
    """
    text = sessions[0].text
    if sessions[0].pack.trains_text:
        return
    wanted: set[Seen] = set()
    for session in sessions:
        found = session.foresee_captions()
        session.live_text = found is None
        captions = (found or set()) | set(session.heldout.captions if session.heldout else ())
        wanted |= {(caption, session.clip_skip) for caption in captions}
    text.remember(wanted)


def _make_pack(styles: Sequence[Style], models: Components, adapters: Sequence[Adapter], flat: FlatWeights) -> Pack:
    recipes = [style.settings.training for style in styles]
    trains_text = TEXT_ENCODER_GROUP in trained_groups(recipes[0])
    text = TextSource(
        models.tokenizer, models.text_encoder,
        max_token_length=recipes[0].max_token_length, clip_skips=[recipe.clip_skip or 1 for recipe in recipes],
    )  # fmt: skip
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
        loss_kind=recipes[0].loss_type,
        ends_at_zero=recipes[0].zero_terminal_snr,
    )  # fmt: skip


def _flatten(adapter: Adapter, groups: Sequence[str], clip_skips: Sequence[int]) -> FlatWeights:
    """Layers of the groups that are trained, the text encoder's one stretch a layer of its own: an adapter reaches those up
    to the one that it sees. The others are idle.
    """
    of_text = {id(layer) for layer in text_projections(adapter.unet)}  # one product, so they lie behind one another
    unet = dict(sorted(adapter.unet.items(), key=lambda item: id(item[1]) not in of_text))
    layers = groupby(adapter.text_encoder.items(), key=lambda item: item[0].partition("_layers_")[2].partition("_")[0])
    text = [dict(stretch) for _, stretch in layers]
    stretches = {TEXT_ENCODER_GROUP: text, UNET_GROUP: [unet]}
    trained = {name: stretches[name] for name in groups}
    idle = {name: layer for name, layer in adapter.layers.items()
            if not any(name in stretch for group in trained.values() for stretch in group)}  # fmt: skip
    reached = [len(text) + 1 - skip for skip in clip_skips]
    return FlatWeights(trained, idle, {TEXT_ENCODER_GROUP: reached} if TEXT_ENCODER_GROUP in trained else {})


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
        models.unet.enable_gradient_checkpointing(forget_activations)
        if trains_text:
            kept = {"use_reentrant": False, "preserve_rng_state": False}
            models.text_encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kept)
            models.text_encoder.train()  # transformers checkpoints in training mode alone
