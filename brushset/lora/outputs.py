"""Whether two forms of an adapter act the same: UNet and text encoder in float32, with either form loaded as its users
load it, and the adapter's effect on them brought to 5–20 %, so that a lost module shows.

A file in diffusers' form goes through diffusers' own loader. A Kohya file is put on by sd-scripts' rule, read here from
its raw keys without our key table: a layer's path with `_` for `.`, y + alpha/rank · up(down(x)) (networks/lora.py,
LoRAModule.forward). All others are put on as they were read. The models are made of random numbers at the adapter's
widths: equality needs no trained ones. Measured on the narrow ones: of 264 modules, the one that matters least moves the
output by 1.6e-4 when it is lost, the median one by 5.6e-3.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from brushset.errors import VerificationFailed
from brushset.lora.adapter import AdapterFile, Factors
from brushset.lora.keys import PREFIXES, Component, key_table
from brushset.lora.kinds import some
from brushset.lora.layouts import DIFFUSERS, KOHYA, OLD

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_OUTPUT_ERROR = 1e-5  # ten times what float32 leaves over a whole UNet
EFFECT = (0.05, 0.20)
_AIM = 0.1
_MODEL_BYTES = 6 << 30  # UNet and text encoder at full size in float32 are 3.9 GB; adapters and activations come on top
_TRIES = 12
Outputs = dict[Component, "torch.Tensor"]
Scales = dict[Component, float]


@dataclass(frozen=True)
class OutputCheck:
    """‖y − y'‖ / ‖y‖ of each component's output, at `scales` times the adapter's strength, where it moves the output by
    `effects`. Without the memory for the models `how` says that each layer was run by itself.
    """

    how: str
    errors: Mapping[str, float]
    effects: Mapping[str, float]
    scales: Mapping[Component, float]
    seconds: float
    peak_rss_mib: int

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=0.0)

    def figures(self) -> dict[str, object]:
        """All but what it took, which differs from time to time."""
        return {"how": self.how, "errors": self.errors, "effects": self.effects, "scales": self.scales}


def compare_outputs(source: AdapterFile, result: AdapterFile) -> OutputCheck:
    """Runs UNet and text encoder with either form.

    Raises:
        VerificationFailed: a form that does not load as a whole.
    """
    import psutil

    started = time.monotonic()
    if not source.architecture.narrow and psutil.virtual_memory().available < _MODEL_BYTES:
        return _compare_layers(source, result, started)
    models = _made_up_models(source)
    components: list[Component] = [
        each for each in PREFIXES if any(n.startswith(PREFIXES[each]) for n in source.factors)
    ]
    plain = _run(models)
    scales, effects, ours = _scaled(models, source, plain, components)
    with _loaded(models, result, scales):
        theirs = _run(models)
    return OutputCheck(
        how=f"UNet and text encoder of {source.architecture.name}'s widths, random weights, float32",
        errors={each: _relative(theirs[each], ours[each]) for each in PREFIXES},
        effects=effects,
        scales=scales,
        seconds=round(time.monotonic() - started, 1),
        peak_rss_mib=psutil.Process().memory_info().rss >> 20,
    )


def require_same_outputs(check: OutputCheck, source: str) -> None:
    """Raises VerificationFailed where outputs differ by more than float32's noise."""
    for component, error in check.errors.items():
        if not error <= MAX_OUTPUT_ERROR:
            raise VerificationFailed(
                f"{source}: the {component}'s output differs by {error:.2g} where {MAX_OUTPUT_ERROR:g} is allowed; "
                "the conversion is wrong and nothing was kept"
            )


def _scaled(
    models: Mapping[Component, nn.Module], source: AdapterFile, plain: Outputs, components: list[Component]
) -> tuple[Scales, dict[str, float], Outputs]:
    """Strengths at which each component's effect lies within EFFECT, those effects, and the outputs there."""
    scales: Scales = dict.fromkeys(components, 1.0)
    for _ in range(_TRIES):
        with _loaded(models, source, scales):
            found = _run(models)
        effects: dict[str, float] = {each: _relative(found[each], plain[each]) for each in components}
        wrong = [each for each in components if effects[each] and not EFFECT[0] <= effects[each] <= EFFECT[1]]
        if not wrong:
            return scales, effects, found
        scales |= {each: scales[each] * _AIM / effects[each] for each in wrong}
    raise VerificationFailed(f"{source.path}: no strength found at which its effect is measurable: {effects}")


def _made_up_models(adapter: AdapterFile) -> dict[Component, nn.Module]:
    """UNet and text encoder of random numbers. A pool of noise is laid out over each weight from a place of its own:
    drawing 980 million numbers takes half a minute, copying them a second.
    """
    import torch
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from brushset.bases.configs import text_encoder_config, unet_config

    with init_empty_weights(include_buffers=False):
        models: dict[Component, nn.Module] = {
            "unet": UNet2DConditionModel.from_config(unet_config(adapter.architecture)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text_encoder_config(adapter.architecture))),
        }
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))  # prime: no row equals another
    for model in models.values():
        weights = {}
        for name, empty in model.named_parameters():
            vector = empty.dim() == 1
            filled = torch.full(empty.shape, float(name.endswith("weight"))) if vector else _laid_out(pool, empty)
            weights[name] = filled
        model.load_state_dict(weights, assign=True, strict=False)
        model.eval().requires_grad_(False)
    return models


def _laid_out(pool: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    count, fan_in = like.numel(), like.numel() // like.shape[0]
    return (pool.repeat(count // len(pool) + 1)[:count] * fan_in**-0.5).view(like.shape)


def _run(models: Mapping[Component, nn.Module]) -> Outputs:
    import torch

    unet: Any = models["unet"]
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        text = models["text_encoder"](torch.arange(77)[None]).last_hidden_state
        context = draw(1, 77, unet.config.cross_attention_dim)
        return {"unet": unet(draw(1, 4, 16, 16), 500, context).sample, "text_encoder": text}


@contextmanager
def _loaded(models: Mapping[Component, nn.Module], adapter: AdapterFile, scales: Scales) -> Iterator[None]:
    """The models with an adapter on, at some strengths, for as long as the block takes."""
    if set(adapter.layouts) <= {DIFFUSERS, OLD} and len(adapter.ranks) == 1 and len(adapter.files) == 1:
        with _through_diffusers(models, adapter, scales):
            yield
        return
    layers = _kohya_layers(models, adapter) if adapter.layouts == (KOHYA,) else _read_layers(models, adapter)
    hooks = []
    for component, layer, factor in layers:
        hook = partial(_add_update, factor=factor, scale=factor.scale * scales[component])
        hooks.append(layer.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def _through_diffusers(models: Mapping[Component, Any], adapter: AdapterFile, scales: Scales) -> Iterator[None]:
    """The way of `load_lora_weights`, on the file itself: its metadata may carry alpha."""
    import torch
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    from brushset.bases.load import quiet_diffusers

    file = adapter.files[0]
    with quiet_diffusers():
        pipeline = StableDiffusionPipeline(
            vae=None, tokenizer=None, scheduler=PNDMScheduler(steps_offset=1), safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
            unet=models["unet"], text_encoder=models["text_encoder"],
        )  # fmt: skip
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name="x")
        for model in models.values():
            model.to(torch.float32)  # the adapter came in the file's dtype, and would be computed in it
        pipeline.set_adapters(["x"], adapter_weights=[dict(scales)])
    try:
        yield
    finally:
        pipeline.unload_lora_weights()


def _kohya_layers(
    models: Mapping[Component, nn.Module], adapter: AdapterFile
) -> Iterator[tuple[Component, Any, Factors]]:
    """sd-scripts' rule, from the raw keys: each layer asks the file for its own name."""
    from brushset.bases.tensors import load_tensors

    state = load_tensors(adapter.files[0])
    old = adapter.old_text_prefix
    for component, prefix in PREFIXES.items():
        start = "lora_te1_" if old and component == "text_encoder" else prefix
        for path, layer in models[component].named_modules():
            name = start + path.replace(".", "_")
            if f"{name}.lora_up.weight" in state:
                down, up = state.pop(f"{name}.lora_down.weight"), state.pop(f"{name}.lora_up.weight")
                alpha = state.pop(f"{name}.alpha", None)
                yield component, layer, Factors(down, up, float(down.shape[0] if alpha is None else alpha))
    if state:
        raise VerificationFailed(f"{adapter.path}: sd-scripts' rule finds no layer for {some(sorted(state))}")


def _read_layers(
    models: Mapping[Component, nn.Module], adapter: AdapterFile
) -> Iterator[tuple[Component, Any, Factors]]:
    table = key_table(adapter.architecture)
    for name, factor in adapter.factors.items():
        module = table[name]
        yield module.component, models[module.component].get_submodule(module.path), factor


def _add_update(layer: Any, inputs: tuple[torch.Tensor], output: torch.Tensor, *, factor: Factors, scale: float) -> Any:
    return output + scale * _update(layer, inputs[0], factor)


def _update(layer: Any, x: torch.Tensor, factor: Factors) -> torch.Tensor:
    """up(down(x)): a convolution's kernel, stride and padding are those of `down`."""
    from torch.nn import functional as F

    down, up = factor.down.float(), factor.up.float()
    if getattr(layer, "kernel_size", None) is None:
        return F.linear(F.linear(x, down.flatten(1)), up.flatten(1))
    down = down.reshape(*down.shape[:2], *layer.kernel_size)
    return F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding), up.reshape(*up.shape[:2], 1, 1))


def _compare_layers(source: AdapterFile, result: AdapterFile, started: float) -> OutputCheck:
    """Where the models do not fit into memory: every layer's update by itself, on random inputs."""
    import psutil
    import torch

    errors: dict[str, float] = dict.fromkeys(PREFIXES, 0.0)
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    for name, factor in source.factors.items():
        x = draw(4, factor.down.flatten(1).shape[1])
        ours, theirs = ((each.scale * _update(None, x, each)) for each in (factor, result.factors[name]))
        component = key_table()[name].component
        errors[component] = max(errors[component], _relative(theirs, ours))
    free = psutil.virtual_memory().available >> 20
    return OutputCheck(
        how=f"each layer by itself: {free} MiB of memory free, the whole models want {_MODEL_BYTES >> 20}",
        errors=errors,
        effects={},
        scales={},
        seconds=round(time.monotonic() - started, 1),
        peak_rss_mib=psutil.Process().memory_info().rss >> 20,
    )


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    size = expected.norm().item()
    difference = (found - expected).norm().item()
    return float(difference / size if size else difference)
