"""Was alpha/dim changed without the learning rates? The adapter acts with alpha/dim, so a rate means nothing alone."""

from __future__ import annotations

from brushset.spec import TrainSection


def pace_warning(train: TrainSection) -> str:
    """One line where a style has another alpha/dim than the default and the default's rates; else an empty string."""
    default = TrainSection()
    scale, usual = train.network_alpha / train.network_dim, default.network_alpha / default.network_dim
    rates = (train.unet_lr, train.text_encoder_lr) == (default.unet_lr, default.text_encoder_lr)
    if not rates or scale == usual or train.optimizer == "Prodigy":
        return ""
    return (
        f"[train] network_alpha/network_dim = {train.network_alpha:g}/{train.network_dim} = {scale:g} with rates that suit {usual:g}: "
        f"the adapter moves {scale / usual:g} times as fast; fix: network_alpha = {usual * train.network_dim:g}, or state unet_lr "
        "and text_encoder_lr too"
    )
