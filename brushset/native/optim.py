"""How fast is what learned? Optimizers and rates by sd-scripts' names, from the libraries that it takes them from."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brushset.errors import UsageError
from brushset.native.settings import TrainingKeys

if TYPE_CHECKING:
    import torch

UNET_GROUP, TEXT_ENCODER_GROUP = "unet", "textencoder"


def trained_groups(training: TrainingKeys) -> dict[str, float]:
    """The rate of each group of weights that is trained, the text encoder's first. A group of rate 0 stays as it is.

    Raises:
        UsageError: nothing would be trained; two rates for Prodigy, which finds one.
    """
    rates = {UNET_GROUP: training.unet_rate}
    if not training.network_train_unet_only:
        rates = {TEXT_ENCODER_GROUP: training.text_encoder_rate, **rates}
    trained = {name: rate for name, rate in rates.items() if rate > 0}
    if not trained:
        raise UsageError("every learning rate is 0: nothing would be trained; set unet_lr")
    if training.optimizer_type == "Prodigy" and len(set(trained.values())) > 1:
        raise UsageError(f'optimizer_type = "Prodigy" takes one rate for all, not {rates}; set both to 1.0')
    return trained


def shared_settings(training: TrainingKeys) -> dict[str, object]:
    """What must be equal for styles to be trained in one pack."""
    keys = (
        "network_dim", "network_alpha", "network_train_unet_only", "mixed_precision", "sdpa", "xformers", "clip_skip",
        "gradient_checkpointing", "max_token_length",
    )  # fmt: skip
    return {key: getattr(training, key) for key in keys} | {"trained": tuple(trained_groups(training))}


def make_optimizer(weights: Mapping[str, Sequence[torch.Tensor]], training: TrainingKeys) -> Any:
    """The optimizer of one adapter's weights, by group. AdamW is the fused one; on a GPU it never waits for the host.

    Raises:
        UsageError: an optimizer_args entry that is not key=value, or that the optimizer does not take.
    """
    import torch

    options = parse_optimizer_args(training.optimizer_args)
    device = next(iter(weights.values()))[0].device
    rates: dict[str, Any] = dict(trained_groups(training))
    if training.optimizer_type == "AdamW" and not options.get("foreach"):
        options.setdefault("fused", True)
        if device.type == "cuda" and options["fused"]:  # a captured step reads its rate from the device
            options.setdefault("capturable", True)
            rates = {name: torch.tensor(rate, device=device) for name, rate in rates.items()}
    groups = [{"params": list(parts), "lr": rates[name]} for name, parts in weights.items()]
    try:
        return _optimizer_class(training.optimizer_type)(groups, lr=training.learning_rate, **options)
    except TypeError as error:
        raise UsageError(f"optimizer_args = {training.optimizer_args}: {error}") from error


def set_rates(optimizer: Any, rates: Sequence[float]) -> None:
    """Gives each parameter group its rate for the next update; one that lies on the device is written there."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], float):
            group["lr"] = rate
        else:
            group["lr"].fill_(rate)


def plan_rates(training: TrainingKeys, steps: int) -> list[dict[str, float]]:
    """The rates of every update, by group: what `make_scheduler` would set, known beforehand."""
    import torch

    groups = trained_groups(training)
    stand_in = [{"params": [torch.zeros(1)], "lr": rate} for rate in groups.values()]
    optimizer = torch.optim.SGD(stand_in, lr=training.learning_rate)
    scheduler = make_scheduler(optimizer, training, steps)
    planned = []
    for _ in range(steps):
        planned.append(dict(zip(groups, scheduler.get_last_lr(), strict=True)))
        optimizer.step()
        scheduler.step()
    return planned


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
    options = parse_optimizer_args(training.optimizer_args)
    name = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
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
