"""Whether two adapters get in each other's way in what the model does: are their effects on the noise prediction additive?

With εS the prediction of the base with the adapters S, all at shared (x_t, t, prompt), and δᵢ = εᵢ − ε₀:
    cosine       ⟨δ₁, δ₂⟩ / (‖δ₁‖ ‖δ₂‖)                 1 the same, −1 one undoes the other
    additivity   ‖ε₁₂ − ε₀ − δ₁ − δ₂‖ / ‖δ₁ + δ₂‖      0: together they do what each does; what the files cannot tell
    kept         ⟨ε₁₂ − ε₀, δᵢ⟩ / ‖δᵢ‖²                 how far both together go each one's own way: 1 as far as it alone
    ratio        ‖δ₁‖ / ‖δ₂‖
The points lie on the base's own way from noise to a guided image, in few steps, so that no images are needed; the prompt
has both triggers and is encoded with the adapters of each prediction. A point takes five rows of one batch: the base
without and with the prompt, each adapter, both. The mean over points is told, the points are kept in the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from brushset.bases.load import Components
from brushset.generation.portions import Portions
from brushset.generation.prompts import PromptEncoder, Wanted
from brushset.generation.schedulers import make_scheduler
from brushset.generation.stack import LoraStack
from brushset.lora.adapter import AdapterFile
from brushset.lora.compose.view import Mix
from brushset.lora.merge.weights import Weight
from brushset.protocols import Emit

STEPS = 5
"""Points of a way: t = 999, 799, 599, 400, 200. Below, pixels are as good as settled."""
_SCHEDULER = "DPM++ 2M"
_GUIDANCE = 7.0  # the evaluation grid's


@dataclass(frozen=True)
class Point:
    """A pair's figures at one timestep of one prompt."""

    prompt: str
    timestep: int
    cosine: float
    additivity: float
    kept: tuple[float, float]
    ratio: float


@dataclass(frozen=True)
class Additivity:
    """Two adapters at weights."""

    first: str
    second: str
    weights: tuple[str, str]
    points: tuple[Point, ...]

    @property
    def cosine(self) -> float:
        return self._mean([point.cosine for point in self.points])

    @property
    def additivity(self) -> float:
        return self._mean([point.additivity for point in self.points])

    @property
    def kept(self) -> tuple[float, float]:
        first, second = zip(*(point.kept for point in self.points), strict=True)
        return self._mean(first), self._mean(second)

    @property
    def ratio(self) -> float:
        """The geometric mean: 2 and ½ are level."""
        return math.exp(self._mean([math.log(point.ratio) for point in self.points]))

    @staticmethod
    def _mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values)


@dataclass(frozen=True)
class ProbeSettings:
    """`at_a_time`: rows of the UNet's batch. Pixels are multiples of 8."""

    prompts: Sequence[str]
    size_px: int = 512
    seed: int = 0
    at_a_time: int = 10


class AdditivityProbe:
    """A base model with the adapters in question."""

    def __init__(self, components: Components, adapters: Mapping[str, AdapterFile], base: str, emit: Emit) -> None:
        """Puts the adapters beside the base.

        Raises:
            UsageError: one does not fit this base.
        """
        self._unet, self._emit = components.unet, emit
        self._portions: dict[int, Portions] = {}
        self._stack, text_stack = LoraStack(components.unet, "unet"), LoraStack(components.text_encoder, "text_encoder")
        for name, adapter in adapters.items():
            for stack in (self._stack, text_stack):
                stack.add(name, stack.fit(adapter.factors, adapter.path, base))
        self._prompts = PromptEncoder(
            components.text_encoder, components.tokenizer, text_stack, one_by_one=False, emit=emit
        )

    @torch.no_grad()
    def compare(
        self, first: tuple[str, Weight], second: tuple[str, Weight], settings: ProbeSettings
    ) -> Additivity:  # fmt: skip
        """All points of a pair. One whose effect is nothing leaves nothing to compare: such points are left out."""
        mixes: list[Mix] = [(), (), (first,), (second,), (first, second)]
        points = [
            point for prompt in settings.prompts for point in self._way(prompt, mixes, settings) if point is not None
        ]
        return Additivity(first[0], second[0], (first[1].told(), second[1].told()), tuple(points))

    def _way(self, prompt: str, mixes: Sequence[Mix], settings: ProbeSettings) -> list[Point | None]:
        scheduler = make_scheduler(_SCHEDULER)
        scheduler.set_timesteps(STEPS, device=self._unet.device)
        generator = torch.Generator("cpu").manual_seed(settings.seed)
        shape = (1, self._unet.config.in_channels, settings.size_px // 8, settings.size_px // 8)
        latent = torch.randn(shape, generator=generator).to(self._unet.device) * scheduler.init_noise_sigma
        texts = ["", *[prompt] * (len(mixes) - 1)]
        embedded = torch.stack(
            self._prompts.encode([Wanted(text, mix, 1) for text, mix in zip(texts, mixes, strict=True)])
        )
        points = []
        for time in scheduler.timesteps:
            given = scheduler.scale_model_input(latent, time)
            without, base, first, second, both = self._predict(given, time, embedded, mixes, settings)
            points.append(figures(prompt, int(time), first - base, second - base, both - base))
            guided = without + _GUIDANCE * (base - without)
            latent = scheduler.step(guided[None], time, latent, return_dict=False)[0]
        return points

    def _predict(
        self, given: torch.Tensor, time: Any, embedded: torch.Tensor, mixes: Sequence[Mix], settings: ProbeSettings
    ) -> torch.Tensor:  # fmt: skip
        """ε of each mix, float32, [mixes, 4, h, w]."""

        def run(part: slice) -> torch.Tensor:
            self._stack.put_in(mixes[part])
            rows = given.to(self._unet.dtype).expand(len(mixes[part]), -1, -1, -1)
            predicted: torch.Tensor = self._unet(rows, time, encoder_hidden_states=embedded[part], return_dict=False)[0]
            return predicted.float()

        try:
            portions = self._portions.setdefault(settings.size_px, Portions("UNet", self._emit))
            return portions.run(run, len(mixes), settings.at_a_time)
        finally:
            self._stack.take_out()


def figures(
    prompt: str, timestep: int, first: torch.Tensor, second: torch.Tensor, both: torch.Tensor
) -> Point | None:  # fmt: skip
    """A point from δ₁, δ₂ and ε₁₂ − ε₀ of one shape; None where one of the two does nothing."""
    one, other, together = (each.double().flatten() for each in (first, second, both))
    squares, product = ((one @ one).item(), (other @ other).item()), (one @ other).item()
    if not all(squares):
        return None
    rest, sum_norm = (together - one - other).norm().item(), (one + other).norm().item()
    return Point(
        prompt=prompt,
        timestep=timestep,
        cosine=product / math.sqrt(squares[0] * squares[1]),
        additivity=rest / sum_norm if sum_norm else math.inf,
        kept=((together @ one).item() / squares[0], (together @ other).item() / squares[1]),
        ratio=math.sqrt(squares[0] / squares[1]),
    )
