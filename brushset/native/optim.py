"""How fast is what learned? Optimizers and rates by sd-scripts' names, from the libraries that it takes them from."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from brushset.errors import UsageError
from brushset.native.settings import TrainingKeys

if TYPE_CHECKING:
    from brushset.native.lora import Adapter

UNET_GROUP, TEXT_ENCODER_GROUP = "unet", "textencoder"


def make_optimizer(adapter: Adapter, training: TrainingKeys) -> tuple[Any, list[str]]:
    """The optimizer, and the name of each of its parameter groups. A group of rate 0 is left out: it stays as it is.

    Raises:
        UsageError: an optimizer_args entry that is not key=value, that the optimizer does not take, or two rates for
            Prodigy, which finds one.
    """
    rates = {TEXT_ENCODER_GROUP: training.text_encoder_rate, UNET_GROUP: training.unet_rate}
    layers = {TEXT_ENCODER_GROUP: adapter.text_encoder, UNET_GROUP: adapter.unet}
    names = [name for name in layers if layers[name] and rates[name] > 0]
    groups = []
    for name in names:
        weights = [weight for layer in layers[name].values() for weight in (layer.down, layer.up)]
        groups.append({"params": weights, "lr": rates[name]})
    if not groups:
        raise UsageError("every learning rate is 0: nothing would be trained; set unet_lr")
    if training.optimizer_type == "Prodigy" and len({group["lr"] for group in groups}) > 1:
        raise UsageError(f'optimizer_type = "Prodigy" takes one rate for all, not {rates}; set both to 1.0')
    kind = _optimizer_class(training.optimizer_type)
    options = parse_optimizer_args(training.optimizer_args)
    try:
        return kind(groups, lr=training.learning_rate, **options), names
    except TypeError as error:
        raise UsageError(f"optimizer_args = {training.optimizer_args}: {error}") from error


def parse_optimizer_args(entries: list[str]) -> dict[str, Any]:
    """`["weight_decay=0.1", "betas=(0.9, 0.99)"]` as keyword arguments; values are Python literals."""
    options = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        try:
            options[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError) as error:
            raise UsageError(f'optimizer_args entry "{entry}" is not key=value with a Python literal') from error
        if not separator:
            raise UsageError(f'optimizer_args entry "{entry}" has no "="; write key=value')
    return options


def warmup_steps(training: TrainingKeys, steps: int) -> int:
    """lr_warmup_steps as a number of updates: a float is a share of all `steps`, rounded down."""
    asked = training.lr_warmup_steps
    return int(asked * steps) if isinstance(asked, float) else asked


def make_scheduler(optimizer: Any, training: TrainingKeys, steps: int) -> Any:
    """The learning rate's course over `steps` updates."""
    from diffusers.optimization import get_scheduler

    return get_scheduler(
        training.lr_scheduler,
        optimizer,
        num_warmup_steps=warmup_steps(training, steps),
        num_training_steps=steps,
        num_cycles=training.lr_scheduler_num_cycles,
        power=training.lr_scheduler_power,
    )


def describe_optimizer(optimizer: Any, training: TrainingKeys) -> str:
    """`torch.optim.adamw.AdamW(weight_decay=0.1)`, as sd-scripts writes it into the metadata."""
    inner = getattr(optimizer, "optimizer", optimizer)
    options = parse_optimizer_args(training.optimizer_args)
    name = f"{type(inner).__module__}.{type(inner).__name__}"
    return f"{name}({','.join(f'{key}={value}' for key, value in options.items())})" if options else name


def _optimizer_class(name: str) -> Any:
    if name == "AdamW":
        from torch.optim import AdamW

        return AdamW
    if name == "AdamW8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit
    if name == "Prodigy":
        from prodigyopt import Prodigy

        return Prodigy
    from lion_pytorch import Lion

    return Lion
