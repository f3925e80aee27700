"""One pass through the models: the batches of one or several styles, side by side, to gradients and losses.

Latents and text states lie on the device; a batch is an index into them. What a batch draws is drawn on the CPU, so that
a seed means the same everywhere, and goes to the device without being waited for. Nothing here reads from the device: the
host runs ahead. The loss is the sum over styles of each style's mean, and no sample of this UNet sees another, so each
adapter's gradients are those of training it alone (measured in float64: below 3e-13 relative, tests/test_native_packed.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from brushset.native.graph import GraphCache
from brushset.native.objective import Corruption, Loss, corrupt, noise_losses, signal_shares

if TYPE_CHECKING:
    from brushset.buckets import Size
    from brushset.native.flat import FlatWeights
    from brushset.native.latents import CachedLatents
    from brushset.native.lora import Adapter
    from brushset.native.product import Product, Routing
    from brushset.native.text import TextSource, Wording


@dataclass(frozen=True)
class Draw:
    """All that one style's batch is, on the CPU. `chosen` are places in its bucket's latents, `spread` multiplies their
    deviations, `text` is what TextSource.prepare makes, `weights` [N] those of each sample's loss. Where another noise is
    added than is to be predicted, that is `added`; `thresholds` [N] are there for losses that bend.
    """

    bucket: Size
    chosen: torch.Tensor
    spread: torch.Tensor | None
    noise: torch.Tensor
    timesteps: torch.Tensor
    weights: torch.Tensor
    text: Wording
    added: torch.Tensor | None = None
    thresholds: torch.Tensor | None = None


@dataclass
class Pack:
    """The models with the adapters of all styles in them; row k belongs to style k. `scales` [K] divide the loss by the
    batches that make an update, `limits` [K] are the largest norms of gradients; all layers read from `routing` which rows
    a pass is for; `scalers` are there in fp16 alone, whose small gradients would vanish.
    """

    unet: Any
    text: TextSource
    flat: FlatWeights
    adapters: Sequence[Adapter]
    latents: Sequence[CachedLatents]
    scales: torch.Tensor
    limits: torch.Tensor
    routing: Routing
    trains_text: bool
    scalers: Sequence[Any] = ()
    graphs: GraphCache | None = None
    loss_kind: str = "l2"
    ends_at_zero: bool = False
    text_product: Product | None = None
    _tables: dict[tuple[Size, bool], torch.Tensor] = field(default_factory=dict)
    _shares: torch.Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.flat.master.device

    def add_gradients(self, draws: Mapping[int, Draw]) -> torch.Tensor:
        """Adds the gradients of one batch of each style, by row, ascending; returns their losses [styles], unread."""
        inputs = self._upload(draws)
        bucket = next(iter(draws.values())).bucket
        self.route(list(draws))
        if self.graphs is None or self.scalers:
            return self._forward_backward(bucket, inputs)
        key = (bucket, tuple(draws), *((name, tuple(tensor.shape)) for name, tensor in inputs.items()))
        return self.graphs.run(key, inputs, lambda given: self._forward_backward(bucket, given))

    def route(self, rows: Sequence[int]) -> None:
        """Sends what follows to these rows, which must lie evenly apart."""
        routing = self.routing
        routing.first, routing.count = rows[0], len(rows)
        routing.step = rows[1] - rows[0] if len(rows) > 1 else 1

    def update(self, rows: Sequence[int], optimizers: Sequence[Any]) -> None:
        """Clips each row's gradients by its own norm, moves its weights and clears them. Rates are set beforehand."""
        self.route(rows)
        captured = all(each.defaults.get("capturable") for each in optimizers)  # others read from the device
        if self.graphs is None or not captured:
            self._update(rows, optimizers)
        else:
            self.graphs.run(("update", *rows), {}, lambda _: self._update(rows, optimizers))

    def _update(self, rows: Sequence[int], optimizers: Sequence[Any]) -> torch.Tensor:
        for row, optimizer in zip(rows, optimizers, strict=True) if self.scalers else ():
            self.scalers[row].unscale_(optimizer)
        self.flat.clip(self.routing, self.routing.take(self.limits))
        for row, optimizer in zip(rows, optimizers, strict=True):
            if self.scalers:
                self.scalers[row].step(optimizer)
                self.scalers[row].update()
            else:
                optimizer.step()
        self.flat.clear(self.routing)
        self.flat.refresh()
        return self.scales

    def _forward_backward(self, bucket: Size, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        latents = self._table(bucket, deviation=False).index_select(0, given["chosen"])
        if "spread" in given:
            spread = self._table(bucket, deviation=True).index_select(0, given["chosen"])
            latents = torch.addcmul(latents, spread, given["spread"])
        losses = self.losses(latents, given, parts=self.routing.count)
        scaled = losses * self.routing.take(self.scales)
        if self.scalers:
            rows = range(self.routing.first, len(self.adapters), self.routing.step)
            scaled = torch.stack([self.scalers[row].scale(loss) for row, loss in zip(rows, scaled, strict=False)])
        scaled.sum().backward()
        self.flat.sum_up()
        return losses.detach()

    def losses(self, latents: torch.Tensor, given: Mapping[str, torch.Tensor], *, parts: int) -> torch.Tensor:
        """The loss of each of equal parts of a batch [parts], of the rows that it was routed to. `given` are a Draw's
        tensors by name, on the device.
        """
        if self._shares is None:
            shares = signal_shares(ends_at_zero=self.ends_at_zero)
            self._shares = shares.to(self.device, self.flat.master.dtype)
        noise = given["noise"]
        noisy = corrupt(latents, Corruption(given.get("added", noise), given["timesteps"]), self._shares)
        with torch.set_grad_enabled(self.trains_text):
            states = self.text.states(given)
        image = noisy.to(self.unet.dtype).contiguous(memory_format=torch.channels_last)
        keys = None if self.text_product is None else {"text": self.text_product(states)}
        predicted = self.unet(image, given["timesteps"], states, cross_attention_kwargs=keys, return_dict=False)[0]
        loss = Loss(self.loss_kind, given.get("thresholds"))
        return noise_losses(predicted, noise, given["weights"], styles=parts, loss=loss)

    def _table(self, bucket: Size, *, deviation: bool) -> torch.Tensor:
        """The latents of all styles in a bucket, images and orientations as one axis, one style after the other."""
        if (bucket, deviation) not in self._tables:
            held = [cached.deviation or {} if deviation else cached.mean for cached in self.latents]
            parts = [each[bucket].flatten(0, 1) for each in held if bucket in each]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            self._tables[bucket, deviation] = joined.to(self.device, self.flat.master.dtype)
        return self._tables[bucket, deviation]

    def _upload(self, draws: Mapping[int, Draw]) -> dict[str, torch.Tensor]:
        """The batches as one, on the device."""
        made: dict[str, list[torch.Tensor]] = {}
        for row, draw in draws.items():
            before = [cached.mean[draw.bucket] for cached in self.latents[:row] if draw.bucket in cached.mean]
            start = sum(each.shape[0] * each.shape[1] for each in before)
            parts = {"chosen": draw.chosen + start if start else draw.chosen, "noise": draw.noise}
            parts |= {"timesteps": draw.timesteps, "weights": draw.weights}
            optional = {"spread": draw.spread, "added": draw.added, "thresholds": draw.thresholds}
            parts |= {name: tensor for name, tensor in optional.items() if tensor is not None}
            for name, tensor in parts.items():
                made.setdefault(name, []).append(tensor)
        joined = {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in made.items()}
        joined |= self.text.join([draw.text for draw in draws.values()])
        return {name: self.send(tensor) for name, tensor in joined.items()}

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Floating point goes in master's precision. From pinned memory a copy is not waited for."""
        if tensor.is_floating_point():
            tensor = tensor.to(self.flat.master.dtype)
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)
