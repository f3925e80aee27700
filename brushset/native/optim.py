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
        "network_train_unet_only", "mixed_precision", "sdpa", "xformers",
        "gradient_checkpointing", "max_token_length", "loss_type", "zero_terminal_snr",
        "cache_latents",
    )  # fmt: skip
    found: dict[str, object] = {key: getattr(training, key) for key in keys}
    if training.optimizer_type == "AdamW8bit":  # its blocks of numbers would not be those of training alone
        found["network_dim"] = training.network_dim
    return found | {"ip_noise": bool(training.ip_noise_gamma), "trained": tuple(trained_groups(training))}


def make_optimizer(weights: Mapping[str, Sequence[torch.Tensor]], training: TrainingKeys) -> Any:
    """The optimizer of one adapter's weights, by group. AdamW is the fused one; on a GPU it never waits for the host.

    Raises:
        UsageError: an optimizer_args entry that is not key=value, or that the optimizer does not take.
    """
    import torch

    options = parse_arguments(training.optimizer_args, key="optimizer_args")
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


def parse_arguments(entries: list[str], *, key: str) -> dict[str, Any]:
    """`["weight_decay=0.1", "betas=(0.9, 0.99)"]` as keyword arguments; values are Python literals."""
    options = {}
    for entry in entries:
        name, separator, value = entry.partition("=")
        try:
            options[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError) as error:
            raise UsageError(f'{key} entry "{entry}" is not key=value with a Python literal') from error
        if not separator:
            raise UsageError(f'{key} entry "{entry}" has no "="; write key=value')
    return options


def count_updates(asked: float, steps: int) -> int:
    """lr_warmup_steps or lr_decay_steps as a number of updates: a float is a share of all `steps`, rounded down."""
    return int(asked * steps) if isinstance(asked, float) else asked


def make_scheduler(optimizer: Any, training: TrainingKeys, steps: int) -> Any:
    """The learning rate's course over `steps` updates: transformers' functions, with what sd-scripts hands to each.

    Raises:
        UsageError: an lr_scheduler_args entry that is not key=value, or that the schedule does not take.
    """
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

    name = training.lr_scheduler
    options = _schedule_options(training, steps) | parse_arguments(training.lr_scheduler_args, key="lr_scheduler_args")
    try:
        return TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)](optimizer, **options)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f'lr_scheduler = "{name}", lr_scheduler_args = {training.lr_scheduler_args}: {error}'
        ) from error


def _schedule_options(training: TrainingKeys, steps: int) -> dict[str, Any]:
    """The arguments of a schedule. sd-scripts counts whole waves of a cosine, transformers half ones."""
    name = training.lr_scheduler
    warmup, decay = (count_updates(asked, steps) for asked in (training.lr_warmup_steps, training.lr_decay_steps))
    cycles, least = training.lr_scheduler_num_cycles, training.lr_scheduler_min_lr_ratio
    if name == "constant":
        return {}
    options: dict[str, Any] = {"num_warmup_steps": warmup}
    if name == "inverse_sqrt":
        return options | {"timescale": training.lr_scheduler_timescale}
    if name == "warmup_stable_decay":
        stable = {"num_stable_steps": steps - warmup - decay, "num_decay_steps": decay, "num_cycles": cycles / 2}
        return options | stable | {"min_lr_ratio": least or 0.0}
    own: dict[str, dict[str, Any]] = {
        "cosine_with_restarts": {"num_cycles": cycles},
        "polynomial": {"power": training.lr_scheduler_power},
        "cosine_with_min_lr": {"num_cycles": cycles / 2, "min_lr_rate": least},
    }
    length = {} if name == "constant_with_warmup" else {"num_training_steps": steps}
    return options | length | own.get(name, {})


def describe_optimizer(optimizer: Any, training: TrainingKeys) -> str:
    """`torch.optim.adamw.AdamW(weight_decay=0.1)`, as sd-scripts writes it into the metadata."""
    options = parse_arguments(training.optimizer_args, key="optimizer_args")
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
