"""The denoising loop: many images at once, each with its prompt, seed, adapters and method.

At every step an image has one view or several (brushset.lora.compose): adapters at weights, the prompt encoded with the
same, and a share. A view takes two rows of the UNet's batch, without and with the prompt; the image's prediction is the
mean of its views' guided predictions by their shares (classifier-free guidance, arXiv 2207.12598; LoRA Composite, arXiv
2402.16843). Rows of all images are asked together, whatever their mixes.

Each image has a generator of its own on the CPU, in float32, for its first latents and for what a sampler adds: one seed,
one noise, whatever batch, device or dtype (a generator asked for float16 draws other numbers). Latents stay in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from brushset.generation.portions import Portions
from brushset.generation.prompts import PromptEncoder, Wanted
from brushset.generation.schedulers import forget_history, make_scheduler
from brushset.generation.settings import Picture, Sampling
from brushset.generation.stack import LoraStack
from brushset.lora.compose.view import Mix, View
from brushset.protocols import Emit

_DECODED_AT_A_TIME = 4  # a decoder's widest layer takes 0.5 GB an image of 512 × 512 in float16


@dataclass(frozen=True)
class Models:
    """UNet and VAE of a base, on their device, and the UNet's adapters."""

    unet: Any
    vae: Any
    stack: LoraStack


@dataclass(frozen=True)
class Drawn:
    """Images as their PNGs hold them, uint8 [N, height, width, 3], RGB, on the CPU; `finite` bool [N] is false of one in
    which the models made NaN: its pixels mean nothing.
    """

    pixels: torch.Tensor
    finite: torch.Tensor


@dataclass(frozen=True)
class _Rows:
    """The rows of the UNet's batch: of which image [R], with which adapters, and the prompt [R, 77, width]; `counts` are the
    views of each image, `shares` [views, 1, 1, 1] each one's share, None where every image has one view.
    """

    images: torch.Tensor
    mixes: Sequence[Mix]
    texts: torch.Tensor
    counts: list[int]
    shares: torch.Tensor | None


@dataclass(frozen=True)
class _Track:
    """Images of a batch whose solver begins anew at the same steps: they share its state."""

    members: torch.Tensor | slice
    scheduler: Any
    restarts: frozenset[int]
    extra: dict[str, Any]


class Sampler:
    """UNet and decoder with their prompts."""

    def __init__(self, models: Models, prompts: PromptEncoder, emit: Emit) -> None:
        self._models, self._prompts, self._emit = models, prompts, emit
        self._portions: dict[tuple[str, int, int], Portions] = {}

    @torch.no_grad()
    def sample(self, pictures: Sequence[Picture], sampling: Sampling) -> torch.Tensor:
        """Latents [N, 4, height/8, width/8], float32, of a batch that is asked together."""
        views = [[picture.course(step, sampling.steps) for picture in pictures] for step in range(sampling.steps)]
        generators = [torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures]
        tracks = _tracks(views, generators, sampling, self._models.unet.device)
        scheduler = tracks[0].scheduler
        latents = self._noise(generators, sampling) * scheduler.init_noise_sigma
        try:
            for index, time in enumerate(scheduler.timesteps):
                step = index // scheduler.order
                if step == 0 or views[step] != views[step - 1]:
                    rows = self._rows(pictures, views[step], sampling)
                given = torch.empty_like(latents)
                for track in tracks:
                    given[track.members] = track.scheduler.scale_model_input(latents[track.members], time)
                made = _combine(self._predict(given, time, rows), rows, sampling.guidance)
                stepped = torch.empty_like(latents)  # never in place: solvers keep the latents that they were given
                for track in tracks:
                    stepped[track.members] = _advance(track, index, made, time, latents)
                latents = stepped
        finally:
            self._models.stack.take_out()
        return latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, *, at_a_time: int) -> Drawn:
        """Rounded on the model's device, which a quarter of the bytes then leaves."""
        vae = self._models.vae
        scaled = (latents / vae.config.scaling_factor).to(vae.dtype)
        finite = torch.zeros(len(latents), dtype=torch.bool)

        def run(part: slice) -> torch.Tensor:
            made = vae.decode(scaled[part], return_dict=False)[0].float()
            finite[part] = made.isfinite().flatten(1).all(1).cpu()
            levels = ((made / 2 + 0.5).clamp(0, 1) * 255).round().byte()
            return levels.permute(0, 2, 3, 1).contiguous().cpu()

        pixels = self._portion("decoder", latents).run(run, len(latents), min(at_a_time, _DECODED_AT_A_TIME))
        return Drawn(pixels, finite)

    def _noise(self, generators: Sequence[torch.Generator], sampling: Sampling) -> torch.Tensor:
        unet = self._models.unet
        shape = (1, unet.config.in_channels, sampling.height // 8, sampling.width // 8)
        return torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(unet.device)

    def _rows(self, pictures: Sequence[Picture], views: Sequence[tuple[View, ...]], sampling: Sampling) -> _Rows:
        """All views without their prompts, then all with; where there is no guidance only these."""
        places = [(pictures[image], image, view) for image, found in enumerate(views) for view in found]
        sides = [places, places] if sampling.guidance > 1 else [places]
        wanted = [
            Wanted(picture.negative_prompt if side < len(sides) - 1 else picture.prompt, view.mix, sampling.clip_skip)
            for side, found in enumerate(sides)
            for picture, _, view in found
        ]
        images = [image for found in sides for _, image, _ in found]
        device, counts = self._models.unet.device, [len(found) for found in views]
        shares = torch.tensor([view.share for _, _, view in places], device=device).view(-1, 1, 1, 1)
        return _Rows(
            images=torch.tensor(images, device=device),
            mixes=[each.mix for each in wanted],
            texts=torch.stack(self._prompts.encode(wanted)),
            counts=counts,
            shares=shares if max(counts) > 1 else None,
        )

    def _predict(self, given: torch.Tensor, time: torch.Tensor, rows: _Rows) -> torch.Tensor:
        """The UNet's answer to each row, float32."""
        unet, stack = self._models.unet, self._models.stack

        def run(part: slice) -> torch.Tensor:
            stack.put_in(rows.mixes[part])
            noisy = given[rows.images[part]].to(unet.dtype)
            predicted: torch.Tensor = unet(noisy, time, encoder_hidden_states=rows.texts[part], return_dict=False)[0]
            return predicted.float()

        return self._portion("UNet", given).run(run, len(rows.mixes), len(rows.mixes))

    def _portion(self, what: str, latents: torch.Tensor) -> Portions:
        """What was found to fit, of a model at an image size."""
        key = (what, latents.shape[2], latents.shape[3])
        if key not in self._portions:
            self._portions[key] = Portions(f"{what} at {8 * key[2]} × {8 * key[1]} pixels", self._emit)
        return self._portions[key]


def _combine(predicted: torch.Tensor, rows: _Rows, guidance: float) -> torch.Tensor:
    """What was predicted for the rows to one prediction an image: the mean over its views by their shares, each guided."""
    guided = predicted
    if guidance > 1:
        without, with_prompt = predicted.chunk(2)
        guided = without + guidance * (with_prompt - without)
    if rows.shares is None:
        return guided
    return torch.stack([part.sum(0) for part in (rows.shares * guided).split(rows.counts)])


def _tracks(
    views: Sequence[Sequence[tuple[View, ...]]], generators: Sequence[torch.Generator], sampling: Sampling, device: Any
) -> list[_Track]:  # fmt: skip
    """The images by the steps at which their solvers begin anew."""
    groups: dict[frozenset[int], list[int]] = {}
    for image in range(len(generators)):
        restarts = frozenset(step for step, found in enumerate(views) if any(view.restart for view in found[image]))
        groups.setdefault(restarts, []).append(image)
    tracks = []
    for restarts, members in groups.items():
        scheduler = make_scheduler(sampling.scheduler)
        scheduler.set_timesteps(sampling.steps, device=device)
        takes_noise = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": [generators[image] for image in members]} if takes_noise else {}
        places = torch.tensor(members, device=device) if len(groups) > 1 else slice(None)
        tracks.append(_Track(places, scheduler, restarts, extra))
    return tracks


def _advance(
    track: _Track, index: int, predicted: torch.Tensor, time: torch.Tensor, latents: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """The next latents of a track's images."""
    if index % track.scheduler.order == 0 and index // track.scheduler.order in track.restarts:
        forget_history(track.scheduler)
    stepped: torch.Tensor = track.scheduler.step(
        predicted[track.members], time, latents[track.members], return_dict=False, **track.extra
    )[0]
    return stepped
