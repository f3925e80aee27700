"""The denoising loop against diffusers' pipeline, against arithmetic, and against its own batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_files import write_trio

from brushset.errors import EnvironmentProblem, UsageError
from brushset.generation.batches import plan_batches
from brushset.generation.schedulers import SCHEDULERS, make_scheduler, scheduler_name
from brushset.generation.settings import Picture, Sampling
from brushset.generator import ImageJob, Mix, MultiLoRAGenerator, Options
from brushset.lora.compose import compose
from brushset.lora.merge.weights import Weight
from brushset.records import BaseFile

SMALL: Any = {"steps": 4, "width": 64, "height": 64}
MIXED: Mix = [("anime", 0.6), ("watercolor", 0.4)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_trio(tmp_path_factory.mktemp("loras"))


@pytest.fixture(scope="module")
def batching(tiny_base: BaseFile, files: dict[str, Path]) -> MultiLoRAGenerator:
    """A generator that makes batches on the CPU too."""
    return loaded(MultiLoRAGenerator(tiny_base, device="cpu", exact=False), files)


@pytest.fixture(scope="module")
def pipeline(tiny_base: BaseFile) -> Any:
    from brushset.bases.load import load_pipeline

    return load_pipeline(tiny_base)


def loaded(generator: MultiLoRAGenerator, files: dict[str, Path]) -> MultiLoRAGenerator:
    for name, path in files.items():
        generator.load_lora(path, name)
    return generator


def levels(image: Any) -> np.ndarray:
    return np.asarray(image).astype(int)


def draw(generator: MultiLoRAGenerator, jobs: Sequence[ImageJob], **changes: Any) -> np.ndarray:
    made = dict(generator.generate_jobs(jobs, Sampling(**{**SMALL, **changes})))
    return np.stack([levels(made[index]) for index in range(len(jobs))])


def latents(generator: MultiLoRAGenerator, mix: Sequence[tuple[str, float]], method: str, **changes: Any) -> Any:
    course = compose(method, [(name, Weight(weight)) for name, weight in mix], Options())
    picture = Picture("a cat", "blurry", 3, course)
    return generator._engine._sampler.sample([picture], Sampling(**{**SMALL, **changes}))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_base_images_are_diffusers_own_with_every_scheduler(
    name: str, batching: MultiLoRAGenerator, pipeline: Any
) -> None:
    import torch

    pipeline.scheduler = make_scheduler(name)
    expected = pipeline(
        prompt=["a cat", "a house"], negative_prompt=["blurry"] * 2, num_inference_steps=4, guidance_scale=6.0,
        width=64, height=72, generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)], output_type="pt",
    ).images  # fmt: skip
    found = draw(
        batching, [ImageJob("a cat", 5), ImageJob("a house", 6)], negative_prompt="blurry", guidance=6.0, height=72,
        scheduler=name, batch_size=2,
    )  # fmt: skip
    assert np.abs(found - (expected * 255).permute(0, 2, 3, 1).numpy()).max() < 0.51 + 1e-2


@pytest.mark.parametrize("guidance", [1.0, 7.0])
def test_mixed_images_are_diffusers_and_pefts_own(
    guidance: float, batching: MultiLoRAGenerator, files: dict[str, Path], tiny_base: BaseFile
) -> None:
    import torch

    from brushset.bases.load import load_pipeline
    from brushset.lora.adapter import read_adapter
    from brushset.lora.forms import to_diffusers

    oracle = load_pipeline(tiny_base)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        for name, _ in MIXED:
            oracle.load_lora_weights(to_diffusers(read_adapter(files[name]).factors), adapter_name=name)
    oracle.set_adapters(["anime", "watercolor"], adapter_weights=[0.6, 0.4])
    expected = oracle(
        "a cat", negative_prompt="blurry", num_inference_steps=4, guidance_scale=guidance, width=64, height=64,
        generator=torch.Generator().manual_seed(3), output_type="latent",
    ).images  # fmt: skip
    found = latents(batching, MIXED, "weighted", guidance=guidance)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_the_negative_prompt_is_skipped_through_the_same_layers(batching: MultiLoRAGenerator, pipeline: Any) -> None:
    import torch

    pipeline.scheduler = make_scheduler("DDIM")
    embedded, _ = pipeline.encode_prompt(["a cat", "blurry"], "cpu", 1, False, clip_skip=1)
    expected = pipeline(
        prompt_embeds=embedded[:1], negative_prompt_embeds=embedded[1:], num_inference_steps=4, guidance_scale=7.0,
        width=64, height=64, generator=torch.Generator().manual_seed(3), output_type="latent",
    ).images  # fmt: skip
    found = latents(batching, (), "weighted", scheduler="DDIM", clip_skip=2)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_composite_is_the_mean_of_what_each_adapter_predicts(batching: MultiLoRAGenerator) -> None:
    one_step: Any = {"scheduler": "Euler", "steps": 1}  # affine in the prediction, so means carry over
    together = latents(batching, MIXED, "composite", **one_step)
    apart = [latents(batching, [entry], "weighted", **one_step) for entry in MIXED]
    assert (together - (apart[0] + apart[1]) / 2).norm() <= 1e-5 * together.norm()
    assert (apart[0] - apart[1]).norm() > 1e-2 * together.norm()


def test_switch_is_its_first_adapter_alone_as_long_as_that_ones_turn_lasts(batching: MultiLoRAGenerator) -> None:
    course = compose("switch", [(name, Weight(float(weight))) for name, weight in MIXED], Options(every=10))
    whole = batching._engine._sampler.sample(
        [Picture("a cat", "blurry", 3, lambda step, _steps: course(step, 20))],
        Sampling(**{**SMALL, "scheduler": "DDIM"}),
    )
    assert (whole == latents(batching, MIXED[:1], "weighted", scheduler="DDIM")).all()


JOBS = [
    ImageJob("a cat", 5 + seed, mix, method=method)
    for mix in ((), [("anime", 1.0)], MIXED, [("unet-only", "0.8,up=0.2"), ("watercolor", 0.5)])
    for seed, method in enumerate((None, "composite", "switch") if len(mix) > 1 else (None,))
]


@pytest.mark.parametrize("scheduler", ["DPM++ 2M Karras", "Euler a"])
def test_a_seed_gives_the_same_image_in_any_batch_of_any_company(scheduler: str, batching: MultiLoRAGenerator) -> None:
    alone = draw(batching, JOBS, steps=6, scheduler=scheduler, batch_size=1)
    for size in (2, 5):
        off = np.abs(draw(batching, JOBS, steps=6, scheduler=scheduler, batch_size=size) - alone)
        assert off.max() <= 1
        assert (off > 0).mean() < 1e-3
    assert len({image.tobytes() for image in alone}) == len(JOBS)


def test_one_at_a_time_every_bit_is_the_same(
    batching: MultiLoRAGenerator, tiny_base: BaseFile, files: dict[str, Path]
) -> None:
    exact = loaded(MultiLoRAGenerator(tiny_base, device="cpu"), files)
    together = draw(exact, JOBS, steps=6, batch_size=5)
    alone = np.concatenate([draw(exact, [job], steps=6, batch_size=1) for job in JOBS])
    assert (together == alone).all()


def test_images_of_the_same_adapters_go_together_and_views_are_counted() -> None:
    def picture(method: str | None, *names: str) -> Picture:
        mix = [(name, Weight(0.5)) for name in names]
        return Picture("", "", 0, compose(method, mix, Options()))

    pictures = [picture(None, "a"), picture(None), picture(None, "a", "b"), picture(None, "a"), picture(None)]
    assert list(plan_batches(pictures, 10, 2)) == [[1, 4], [0, 3], [2]]
    assert list(plan_batches(pictures, 10, 3)) == [[1, 4, 0], [3, 2]]
    wide = [picture("composite", "a", "b"), picture(None, "a", "b"), picture("composite", "a", "b")]
    assert list(plan_batches(wide, 10, 3)) == [[0, 1], [2]]
    assert list(plan_batches(wide, 10, 1)) == [[0], [1], [2]]


@pytest.fixture
def small_memory(batching: MultiLoRAGenerator, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A UNet that takes no more than four rows; its batches."""
    import torch

    unet, taken = batching._engine.components.unet, []
    original = unet.forward

    def forward(noisy: Any, *args: Any, **kwargs: Any) -> Any:
        taken.append(len(noisy))
        if len(noisy) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(noisy, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", forward)
    yield taken
    batching._engine._sampler._portions.clear()


def test_out_of_memory_halves_the_batch_once_and_loses_nothing(
    batching: MultiLoRAGenerator, small_memory: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [ImageJob("a cat", seed, MIXED) for seed in range(7)]
    expected = draw(batching, jobs, batch_size=2)
    told: list[str] = []
    monkeypatch.setattr(batching._engine._sampler, "_emit", lambda _event, **fields: told.append(fields["text"]))
    batching._engine._sampler._portions.clear()
    small_memory.clear()
    found = draw(batching, jobs, batch_size=7)
    assert small_memory[:5] == [14, 7, 3, 3, 3]
    assert 14 not in small_memory[1:]
    assert np.abs(found - expected).max() <= 1
    assert told == [
        "UNet at 64 × 64 pixels: out of memory with 14 rows at a time; goes on with 7",
        "UNet at 64 × 64 pixels: out of memory with 7 rows at a time; goes on with 3",
    ]
    assert batching._engine._unet_stack.hooked == 0


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_where_not_even_one_row_fits_it_says_so(
    part: str, tiny_base: BaseFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = MultiLoRAGenerator(tiny_base, device="cpu", exact=False)

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory")

    model = getattr(generator._engine.components, part)
    monkeypatch.setattr(model, "decode" if part == "vae" else "forward", full)
    with pytest.raises(EnvironmentProblem, match="out of memory with a single row; fix: smaller images"):
        draw(generator, [ImageJob("a cat", 1), ImageJob("a dog", 2)])


def test_a_prompt_is_encoded_once_for_what_the_text_encoder_sees(
    tiny_base: BaseFile, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = loaded(MultiLoRAGenerator(tiny_base, device="cpu", exact=False), files)
    encoder, rows = generator._engine.components.text_encoder, []
    original = encoder.forward

    def forward(tokens: Any, **kwargs: Any) -> Any:
        rows.append(len(tokens))
        return original(tokens, **kwargs)

    monkeypatch.setattr(encoder, "forward", forward)
    mixes: list[Mix] = [
        (),
        [("unet-only", 0.8)],
        [("anime", "0.4,text=0")],
        [("anime", 0.5)],
        [("anime", "0.9,text=0.5")],
    ]
    draw(generator, [ImageJob("a cat", seed, mix) for seed in (1, 2) for mix in mixes], batch_size=10, steps=2)
    assert rows == [4]  # prompt and negative prompt, with the base's text encoder and with anime's at 0.5
    draw(generator, [ImageJob("a cat", 3, [("anime", 0.5)]), ImageJob("a dog", 3)], batch_size=10, steps=2)
    assert rows == [4, 1]


def test_a_prompt_that_clip_cannot_take_is_said_once(tiny_base: BaseFile) -> None:
    told: list[str] = []

    def emit(event: str, /, **fields: object) -> None:
        if event == "warning":
            told.append(str(fields["text"]))

    generator = MultiLoRAGenerator(tiny_base, device="cpu", emit=emit)
    prompt = "a cat, " * 24 + "violet sky, many small birds"
    draw(generator, [ImageJob(prompt, 1), ImageJob(prompt, 2)], steps=1)
    assert len(told) == 1
    assert "CLIP takes 75; left out:" in told[0]
    assert told[0].endswith('birds"')


def test_a_scheduler_is_known_by_its_name_however_it_is_written() -> None:
    assert scheduler_name("dpm++ 2m karras") == "DPM++ 2M Karras"
    assert scheduler_name("euler_a") == "Euler a"
    with pytest.raises(UsageError, match=r'scheduler "Eulre": unknown; there are: DPM\+\+ 2M Karras, '):
        Sampling(scheduler="Eulre")


def test_all_that_is_wrong_with_jobs_is_said_before_anything_is_made(batching: MultiLoRAGenerator) -> None:
    jobs = [
        ImageJob("a cat", 1, [("cartoon", 1.0)]),
        ImageJob("a cat", 1, [("anime", "0.6,middle=1")]),
        ImageJob("a cat", 1, [("anime", 1.0), ("anime", 0.5)]),
        ImageJob("a cat", 1, [("anime", 1.0)], method="blend"),
        ImageJob("a cat", 1, MIXED, method="switch"),
    ]
    with pytest.raises(UsageError) as raised:
        batching.generate_jobs(jobs, Sampling(**SMALL))
    lines = str(raised.value).splitlines()
    assert len(lines) == 5
    for line, part in zip(lines, ("cartoon", "middle=1", "twice", "blend", "never come to watercolor"), strict=True):
        assert part in line


@pytest.mark.slow
def test_compiled_a_change_of_mix_compiles_nothing_anew(
    tiny_base: BaseFile, files: dict[str, Path], batching: MultiLoRAGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and run without machine code: what would be compiled anew is decided before that."""
    import torch
    from diffusers import UNet2DConditionModel
    from torch._dynamo.utils import counters

    original = UNet2DConditionModel.compile_repeated_blocks
    monkeypatch.setattr(
        UNet2DConditionModel, "compile_repeated_blocks", lambda self, **keys: original(self, backend="eager", **keys)
    )
    torch.compiler.reset()
    generator = loaded(MultiLoRAGenerator(tiny_base, device="cpu", compile=True), files)
    counters.clear()
    mixes: list[Mix] = [MIXED, [("anime", "0.3,down=1"), ("unet-only", 0.2)], (), [("watercolor", 0.1)]]
    graphs = []
    for mix in mixes:
        job = [ImageJob("a cat", 1, mix)]
        assert np.abs(draw(generator, job, steps=2) - draw(batching, job, steps=2)).max() <= 1
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert set(graphs) == {graphs[0]}
    generator.unload_lora("anime")
    job = [ImageJob("a cat", 1, [("watercolor", 0.7)])]
    assert np.abs(draw(generator, job, steps=2) - draw(batching, job, steps=2)).max() <= 1
    torch.compiler.reset()
