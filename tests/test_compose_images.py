"""Each way of composing, end to end on the narrow model, against a loop of our own: adapters added into copies of the
weights, one model at a time, prompts encoded by the same copy, DPM-Solver++ 2M by its formula.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from lora_files import write_lora
from unrounded import draw_unrounded

from brushset.bases.load import Components, load_components
from brushset.generation.engine import Engine
from brushset.generation.schedulers import make_scheduler
from brushset.generation.settings import Picture, Sampling
from brushset.log import silent
from brushset.lora.adapter import AdapterFile, read_adapter
from brushset.lora.compose import Course, Mix, Options, View, compose
from brushset.lora.compose.progress import parse_schedule
from brushset.lora.keys import key_table
from brushset.lora.merge.weights import Weight, parse_weight
from brushset.records import BaseFile

STEPS, GUIDANCE, PROMPT, NEGATIVE, SEED = 6, 4.0, "a cat on a wall", "blurry", 7
SAMPLING = Sampling(steps=STEPS, guidance=GUIDANCE, width=64, height=64, negative_prompt=NEGATIVE)
MIX: Mix = [("anime", Weight(0.8)), ("watercolor", parse_weight("0.6,text=0.3,up=0.9", "x"))]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AdapterFile]:
    folder = tmp_path_factory.mktemp("loras")
    files = {"anime": write_lora(folder / "anime.safetensors", dim=3, seed=1)}
    files["watercolor"] = write_lora(folder / "watercolor.safetensors", dim=4, seed=2)
    return {name: read_adapter(file) for name, file in files.items()}


@pytest.fixture(scope="module")
def components(tiny_base: BaseFile) -> Components:
    return load_components(tiny_base)


@pytest.fixture(scope="module")
def engine(components: Components, adapters: dict[str, AdapterFile]) -> Engine:
    made = Engine(components, one_by_one=True, compiled=False, emit=silent)
    for name, adapter in adapters.items():
        made.load(name, adapter, "tiny")
    return made


def draw(engine: Engine, course: Course) -> Any:
    """Pixels [3, 64, 64], 0 to 1, as they are before they are rounded."""
    return draw_unrounded(engine, Picture(PROMPT, NEGATIVE, SEED, course), SAMPLING)


def test_what_is_drawn_is_that_rounded_to_eight_bits(engine: Engine) -> None:
    import torch

    drawn = engine.draw([Picture(PROMPT, NEGATIVE, SEED, COURSES["weighted"])], SAMPLING)
    assert drawn.finite.tolist() == [True]
    assert drawn.pixels.shape == (1, 64, 64, 3)
    assert torch.equal(drawn.pixels[0], (draw(engine, COURSES["weighted"]) * 255).round().byte().permute(1, 2, 0))


class ByHand:
    """One view at a time, W + Σ wΔW written into copies of UNet and text encoder."""

    def __init__(self, components: Components, adapters: dict[str, AdapterFile]) -> None:
        self.components, self.adapters = components, adapters
        self.made: dict[str, tuple[Any, Any]] = {}

    def models(self, view: View) -> tuple[Any, Any]:
        key = repr(view.mix)
        if key not in self.made:
            unet, text = copy.deepcopy(self.components.unet), copy.deepcopy(self.components.text_encoder)
            for name, weight in view.mix:
                for module, factor in self.adapters[name].factors.items():
                    entry = key_table()[module]
                    layer = (unet if entry.component == "unet" else text).get_submodule(entry.path)
                    layer.weight.add_(weight.of(module) * factor.delta().reshape(layer.weight.shape))
            self.made[key] = unet, text
        return self.made[key]

    def embedding(self, view: View, prompt: str) -> Any:
        ids = self.components.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return self.models(view)[1](ids)[0]

    def guided(self, view: View, x: Any, time: Any) -> Any:
        unet = self.models(view)[0]
        without, with_prompt = (
            unet(x, time, encoder_hidden_states=self.embedding(view, text)).sample for text in (NEGATIVE, PROMPT)
        )
        return without + GUIDANCE * (with_prompt - without)

    def draw(self, course: Course) -> Any:
        """DPM-Solver++ 2M, arXiv 2211.01095, algorithm 2; of first order at the ends and where the course starts anew."""
        import torch

        scheduler = make_scheduler("DPM++ 2M Karras")
        scheduler.set_timesteps(STEPS)
        ratios = scheduler.sigmas.double().tolist()  # σ/α, falling to 0
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SEED))
        kept, width = None, 0.0
        for step, time in enumerate(scheduler.timesteps):
            ratio, following = ratios[step], ratios[step + 1]
            alpha, alpha_after = (1 / math.sqrt(1 + each**2) for each in (ratio, following))
            views = course(step, STEPS)
            noise = sum(view.share * self.guided(view, x, time) for view in views)
            clean = (x - ratio * alpha * noise) / alpha
            if following == 0:
                x = clean
                break
            h = math.log(ratio / following)
            first = kept is None or views[0].restart
            drawn = clean if first else clean + h / (2 * width) * (clean - kept)
            x = following * alpha_after / (ratio * alpha) * x - alpha_after * math.expm1(-h) * drawn
            kept, width = clean, h
        pixels = self.components.vae.decode(x / 0.18215).sample[0]
        return (pixels / 2 + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def by_hand(components: Components, adapters: dict[str, AdapterFile]) -> ByHand:
    return ByHand(components, adapters)


def schedule() -> Course:
    texts = {"anime": "0.8@0-0.5", "watercolor": "0.2→0.8,text=0.4"}
    schedules = {name: parse_schedule(text, text) for name, text in texts.items()}
    return compose(None, MIX, Options(schedules=schedules))


COURSES: dict[str, Course] = {
    "base": compose(None, []),
    "weighted": compose("weighted", MIX),
    "schedule": schedule(),
    "switch": compose("switch", MIX, Options(every=2)),
    "composite": compose("composite", MIX),
    "composite by weight": compose("composite", MIX, Options(shares="weights")),
}


@pytest.mark.parametrize("name", COURSES)
def test_images_are_those_of_the_definition(name: str, engine: Engine, by_hand: ByHand) -> None:
    import torch

    with torch.no_grad():
        ours, theirs, base = draw(engine, COURSES[name]), by_hand.draw(COURSES[name]), draw(engine, COURSES["base"])
    assert (ours - theirs).abs().max() < 1e-4
    if name != "base":
        assert (ours - base).abs().max() > 0.02, "the adapters do not show: the comparison proves nothing"


def test_the_methods_draw_different_images(engine: Engine) -> None:
    drawn = {name: draw(engine, course) for name, course in COURSES.items()}
    names = list(drawn)
    for at, one in enumerate(names):
        for other in names[:at]:
            assert (drawn[one] - drawn[other]).abs().max() > 1e-3, (one, other)


def test_one_adapter_alone_is_one_image_whatever_the_method(engine: Engine) -> None:
    import torch

    alone = [draw(engine, compose(method, MIX[:1])) for method in ("weighted", "schedule", "switch", "composite")]
    assert all(torch.equal(alone[0], each) for each in alone)


def test_each_adapter_reads_the_prompt_with_its_own_text_encoder(engine: Engine, by_hand: ByHand) -> None:
    import torch

    seen: list[Any] = []
    unet = engine.components.unet
    handle = unet.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["encoder_hidden_states"].clone()), with_kwargs=True
    )
    try:
        with torch.no_grad():
            draw(engine, compose("switch", MIX, Options(every=2)))
    finally:
        handle.remove()
    assert len(seen) == STEPS
    turns = [MIX[step // 2 % 2] for step in range(STEPS)]
    for texts, turn in zip(seen, turns, strict=True):
        own, others = (by_hand.embedding(View((each,)), PROMPT) for each in (turn, MIX[1 - MIX.index(turn)]))
        without = by_hand.embedding(View((turn,)), NEGATIVE)
        assert (texts[1:] - own).norm() < 1e-5 * own.norm()
        assert (texts[:1] - without).norm() < 1e-5 * without.norm()
        assert (texts[1:] - others).norm() > 0.05 * own.norm()


def test_the_solver_heeds_where_the_course_starts_anew(engine: Engine) -> None:
    def unheeded(step: int, steps: int) -> tuple[View, ...]:
        return tuple(View(view.mix, view.share) for view in COURSES["switch"](step, steps))

    assert (draw(engine, COURSES["switch"]) - draw(engine, unheeded)).abs().max() > 1e-3
