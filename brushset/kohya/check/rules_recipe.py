"""Rules on what is trained, at which rate, and for how long: the combinations of training options that sd-scripts stops
at, or silently does something else with. Read in v0.10.1's train_network.py, library/train_util.py and networks/lora.py;
tests/test_kohya_rules.py holds those that are cheap to show against the real code.
"""

from __future__ import annotations

from brushset.kohya.check.rule import PLAIN_LORA, Rule, needs, stops

# Outside of this, as rate × alpha/dim, an Adam learns nothing, or destroys everything within some steps.
LEAST_PACE, MOST_PACE = 1e-6, 5e-3
_BOTH_RATES = "unet_lr = {unet_lr} and text_encoder_lr = {text_encoder_lr} override it"

RATES = (
    Rule(
        "text_encoder_lr",
        lambda s: "text_encoder_lr" in s.given and s.text_encoder_rate == 0 and not s.on("network_train_unet_only"),
        "text_encoder_lr = {text_encoder_lr} trains no text encoder",
        "its 72 modules are made, never trained and saved as zeros: the LoRA is UNet-only",
        "text_encoder_lr = 5e-5, or network_train_unet_only = true where that is meant",
    ),
    Rule(
        "unet_lr",
        lambda s: "unet_lr" in s.given and s.unet_rate == 0 and not s.on("network_train_text_encoder_only"),
        "unet_lr = {unet_lr} trains no UNet",
        "its 192 modules are made, never trained and saved as zeros",
        "unet_lr = 1e-4, or network_train_text_encoder_only = true where that is meant",
    ),
    Rule(
        "text_encoder_lr",
        lambda s: s.on("text_encoder_lr") and s.text_encoder_rate > 0 and s.on("network_train_unet_only"),
        "text_encoder_lr = {text_encoder_lr} has no effect with network_train_unet_only",
        "the text encoder is not trained",
        "leave one of them out",
    ),
    Rule(
        "text_encoder_lr",
        lambda s: isinstance(s["text_encoder_lr"], list) and len(s["text_encoder_lr"]) > 1,
        "text_encoder_lr = {text_encoder_lr} names several rates",
        "SD 1.5 has one text encoder: the first is used, the others are ignored",
        "one number",
        sd15_only=True,
    ),
    Rule(
        "unet_lr",
        lambda s: s.on("unet_lr") and s.on("network_train_text_encoder_only"),
        "unet_lr = {unet_lr} has no effect with network_train_text_encoder_only",
        "the UNet is not trained",
        "leave one of them out",
    ),
    stops(
        "network_train_text_encoder_only",
        lambda s: s.on("network_train_unet_only") and s.on("network_train_text_encoder_only"),
        "network_train_unet_only and network_train_text_encoder_only exclude each other",
        "nothing is left to train",
        "leave both out to train both",
    ),
    Rule(
        "learning_rate",
        lambda s: s.on("learning_rate") and s.on("unet_lr") and not s.on("network_train_unet_only")
        and s["text_encoder_lr"] is not None and s.given["learning_rate"] not in (s.unet_rate, s.text_encoder_rate),
        "learning_rate = {learning_rate} has no effect", _BOTH_RATES + "; only the file's metadata will say it",
        "leave it out, or make it equal to unet_lr",
    ),
    Rule(
        "learning_rate",
        lambda s: s.on("learning_rate") and s.on("unet_lr", "network_train_unet_only")
        and s["unet_lr"] is not None and s.on("network_train_unet_only") and s.given["learning_rate"] != s.unet_rate,
        "learning_rate = {learning_rate} has no effect", "unet_lr = {unet_lr} overrides it", "leave it out",
    ),
    Rule(
        "",
        lambda s: "learning_rate" not in s.given and "unet_lr" not in s.given
        and not s.on("network_train_text_encoder_only"),
        "neither learning_rate nor unet_lr is given", "the UNet trains at 2e-06, where next to nothing is learned",
        "unet_lr = 1e-4",
    ),
    Rule(
        "",
        lambda s: "learning_rate" not in s.given and "unet_lr" in s.given and s["text_encoder_lr"] is None
        and not s.on("network_train_unet_only"),
        "neither learning_rate nor text_encoder_lr is given", "the text encoder trains at 2e-06",
        "text_encoder_lr = 5e-5, or network_train_unet_only = true",
    ),
)  # fmt: skip

NETWORK = (
    Rule(
        "",
        lambda s: s["network_module"] == PLAIN_LORA and "network_dim" not in s.given
        and not s.on("dim_from_weights") and not s.network_arg("block_dims"),
        "network_dim is not given", "the LoRA gets rank 4", "network_dim = 32",
    ),
    Rule(
        "",
        lambda s: s["network_module"] == PLAIN_LORA and "network_alpha" not in s.given and s["network_dim"] not in (None, 1)
        and not s.on("dim_from_weights") and not s.network_arg("block_alphas"),
        "network_alpha is not given with network_dim = {network_dim}",
        "alpha is 1: the LoRA acts with alpha/dim = {scale}, and rates meant for alpha = dim are too low by that much",
        "state alpha and the rates together; network_alpha = half of network_dim suits unet_lr = 1e-4",
    ),
    Rule(
        "network_alpha",
        lambda s: s.given.get("network_alpha") == 0,
        "network_alpha = 0 is taken as network_dim", "the LoRA acts with alpha/dim = 1", "state the alpha that is meant",
    ),
    Rule(
        "network_alpha",
        lambda s: s["network_module"] == PLAIN_LORA and s.on("network_alpha", "network_dim") and s.on("network_alpha")
        and not s.finds_its_rate and not LEAST_PACE <= s.pace <= MOST_PACE and s.unet_rate > 0,
        "network_alpha = {network_alpha} with network_dim = {network_dim} acts with alpha/dim = {scale}",
        "the rate, multiplied by that, is outside of what trains a LoRA: alpha/dim was changed without it",
        "change alpha/dim and the rates together; 16/32 with unet_lr = 1e-4 is a usual choice",
    ),
    stops(
        "dim_from_weights", lambda s: s.on("dim_from_weights") and not s.on("network_weights"),
        "dim_from_weights needs network_weights", "there is no file to read them from", "set network_weights",
    ),
    needs("base_weights_multiplier", "base_weights"),
)  # fmt: skip

LENGTH = (
    Rule(
        "max_train_steps",
        lambda s: "max_train_steps" in s.given and s.on("max_train_epochs"),
        "max_train_steps = {max_train_steps} has no effect",
        "max_train_epochs = {max_train_epochs} overrides it",
        "leave one of them out",
    ),
    Rule(
        "",
        lambda s: not s.on("max_train_steps", "max_train_epochs"),
        "neither max_train_epochs nor max_train_steps is given",
        "sd-scripts trains 1600 steps, however many images there are",
        "max_train_epochs = 20",
    ),
    Rule(
        "resume",
        lambda s: s.on("resume") and not s.on("skip_until_initial_step"),
        "resume without skip_until_initial_step",
        "the epoch starts again, steps are counted from 0, and older checkpoints are overwritten",
        "skip_until_initial_step = true, into a new output_dir",
    ),
    Rule(
        "skip_until_initial_step",
        lambda s: s.on("skip_until_initial_step") and (s["gradient_accumulation_steps"] or 1) > 1,
        "skip_until_initial_step with gradient_accumulation_steps = {gradient_accumulation_steps}",
        "epochs are skipped that were not trained; it may train nothing and exit with 0",
        "gradient_accumulation_steps = 1",
    ),
    Rule(
        "debug_dataset",
        lambda s: s.on("debug_dataset"),
        "debug_dataset = true trains nothing",
        "images are shown, and sd-scripts exits with 0",
        "leave it out",
    ),
)
