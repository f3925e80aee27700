"""Rules on optimizer and schedule, precision, noise and loss, saving and sampling. As in rules_recipe.py, each was read
in sd-scripts' code.
"""

from __future__ import annotations

from brushset.kohya.check.options import known_flags
from brushset.kohya.check.rule import ADAPTIVE, Rule, needs, needs_schedule, stops

_ATTENTION = ("mem_eff_attn", "xformers", "sdpa")  # the first that is on is used
_HUBER = ("huber", "smooth_l1")

OPTIMIZER = (
    stops(
        "use_8bit_adam", lambda s: s.on("use_8bit_adam") and s.on("optimizer_type"),
        "use_8bit_adam with optimizer_type", "both are specified", 'optimizer_type = "AdamW8bit" alone',
    ),
    stops(
        "use_lion_optimizer", lambda s: s.on("use_lion_optimizer") and s.on("optimizer_type", "use_8bit_adam"),
        "use_lion_optimizer with another optimizer", "both are specified", 'optimizer_type = "Lion" alone',
    ),
    stops(
        "lr_warmup_steps",
        lambda s: s.warmup > 0 and not s.on("lr_scheduler_type") and s["lr_scheduler"] == "constant"
        and "schedulefree" not in s.optimizer and s.optimizer != "adafactor",
        'lr_warmup_steps = {lr_warmup_steps} with lr_scheduler = "constant"',
        "constant does not require `num_warmup_steps`", 'lr_scheduler = "constant_with_warmup"',
    ),
    stops(
        "lr_warmup_steps", lambda s: s.warmup > 0 and s.on("lr_scheduler_type"),
        "lr_warmup_steps = {lr_warmup_steps} with lr_scheduler_type", "such a schedule takes no warm-up", "lr_warmup_steps = 0",
    ),
    Rule(
        "lr_warmup_steps", lambda s: isinstance(s["lr_warmup_steps"], float) and s.warmup >= 1,
        "lr_warmup_steps = {lr_warmup_steps} is a fraction of all steps, since it is no integer",
        "the warm-up never ends, and the rate is never reached", "an integer, or a share below 1",
    ),
    Rule(
        "lr_warmup_steps",
        lambda s: isinstance(s["lr_warmup_steps"], int) and isinstance(s["max_train_steps"], int)
        and not s.on("max_train_epochs") and s["lr_warmup_steps"] >= s["max_train_steps"],
        "lr_warmup_steps = {lr_warmup_steps} is not below max_train_steps = {max_train_steps}",
        "the rate is never reached", "fewer steps, or a share such as 0.05",
    ),
    Rule(
        "lr_scheduler", lambda s: s.changed("lr_scheduler") and "schedulefree" in s.optimizer,
        'lr_scheduler = "{lr_scheduler}" has no effect with this optimizer', "schedule-free optimizers have no schedule",
        "leave it out",
    ),
    Rule(
        "lr_scheduler",
        lambda s: s.changed("lr_scheduler") and s.optimizer == "adafactor" and s.finds_its_rate
        and not str(s["lr_scheduler"]).startswith("adafactor"),
        'lr_scheduler = "{lr_scheduler}" has no effect with Adafactor',
        "by its relative_step=True it brings its own schedule", 'optimizer_args = ["relative_step=False"]',
    ),
    Rule(
        "unet_lr", lambda s: s.on("unet_lr", "text_encoder_lr") and s.optimizer == "adafactor" and s.finds_its_rate,
        "unet_lr and text_encoder_lr have no effect with Adafactor",
        "by its relative_step=True it sets its own rate", 'optimizer_args = ["relative_step=False"]',
    ),
    stops(
        "text_encoder_lr",
        lambda s: s.optimizer == "prodigy" and not s.on("network_train_unet_only", "network_train_text_encoder_only")
        and s.unet_rate > 0 and s.text_encoder_rate > 0 and s.unet_rate != s.text_encoder_rate,
        "unet_lr = {unet_lr} and text_encoder_lr = {text_encoder_lr} differ under Prodigy",
        "Prodigy takes one rate for all, and raises RuntimeError at the first step", "1.0 for both",
    ),
    Rule(
        "text_encoder_lr",
        lambda s: s.optimizer.startswith("dadapt") and not s.on("network_train_unet_only")
        and s.unet_rate > 0 and s.text_encoder_rate > 0 and s.unet_rate != s.text_encoder_rate,
        "unet_lr = {unet_lr} and text_encoder_lr = {text_encoder_lr} differ under D-Adaptation",
        "only the first, the text encoder's, takes effect", "1.0 for both",
    ),
    Rule(
        "optimizer_type", lambda s: s.optimizer.startswith(ADAPTIVE) and 0 < s.unet_rate <= 0.1,
        'optimizer_type = "{optimizer_type}" finds its own rate, of which {unet_lr} is a factor',
        "sd-scripts warns that the rate is too low, and trains on", "1.0 for all rates",
    ),
    needs_schedule("lr_scheduler_num_cycles", "cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"),
    needs_schedule("lr_scheduler_power", "polynomial"),
    needs_schedule("lr_scheduler_timescale", "inverse_sqrt"),
    needs_schedule("lr_scheduler_min_lr_ratio", "cosine_with_min_lr", "warmup_stable_decay"),
    needs_schedule("lr_decay_steps", "warmup_stable_decay"),
    stops(
        "lr_scheduler",
        lambda s: not s.on("lr_scheduler_type") and isinstance(s["lr_scheduler"], str)
        and s["lr_scheduler"] not in known_flags()["schedules"] and not s["lr_scheduler"].startswith("adafactor")
        and "schedulefree" not in s.optimizer and s.optimizer != "adafactor",
        'lr_scheduler = "{lr_scheduler}" is no schedule that it can make',
        "only once models are loaded and latents cached", "one of linear, cosine, cosine_with_restarts, polynomial, constant",
    ),
)  # fmt: skip

PRECISION = (
    stops(
        "full_fp16", lambda s: s.on("full_fp16") and s["mixed_precision"] != "fp16",
        'full_fp16 with mixed_precision = "{mixed_precision}"', "full_fp16 requires mixed precision='fp16'",
        'mixed_precision = "fp16"',
    ),
    stops(
        "full_bf16",
        lambda s: s.on("full_bf16") and not s.on("full_fp16") and s["mixed_precision"] != "bf16",
        'full_bf16 with mixed_precision = "{mixed_precision}"', "full_bf16 requires mixed precision='bf16'",
        'mixed_precision = "bf16"',
    ),
    stops(
        "fp8_base", lambda s: s.on("fp8_base", "fp8_base_unet") and s["mixed_precision"] == "no",
        'fp8_base with mixed_precision = "no"', "fp8_base requires mixed precision='fp16' or 'bf16'",
        'mixed_precision = "bf16"',
    ),
    *(
        Rule(
            loser, lambda s, winner=winner, loser=loser: s.on(winner) and s.on(loser),  # type: ignore[misc]
            f"{loser} has no effect with {winner}", f"{winner} is used", "leave one of them out",
        )
        for index, winner in enumerate(_ATTENTION) for loser in _ATTENTION[index + 1 :]
    ),
    needs("dynamo_backend", "torch_compile", severity="harmless"),
    stops(
        "persistent_data_loader_workers",
        lambda s: s.on("persistent_data_loader_workers") and s["max_data_loader_n_workers"] == 0,
        "persistent_data_loader_workers with max_data_loader_n_workers = 0",
        "torch's data loader raises ValueError", "leave it out, or give it workers",
    ),
    needs("skip_cache_check", "cache_latents_to_disk"),
    Rule(
        "cache_latents_to_disk", lambda s: s.on("cache_latents_to_disk"),
        "cache_latents_to_disk keeps latents beside the images, by name and original size alone",
        "an image, resolution or VAE that changes later is not noticed: the old latents are trained on",
        "cache_latents = true alone, or delete the .npz files after any change", "harmless",
    ),
)  # fmt: skip

NOISE_AND_LOSS = (
    stops(
        "adaptive_noise_scale", lambda s: s["adaptive_noise_scale"] is not None and s["noise_offset"] is None,
        "adaptive_noise_scale needs noise_offset", "adaptive_noise_scale requires noise_offset", "set noise_offset",
    ),
    needs("noise_offset_random_strength", "noise_offset"),
    needs("multires_noise_discount", "multires_noise_iterations"),
    needs("ip_noise_gamma_random_strength", "ip_noise_gamma"),
    Rule(
        "huber_c", lambda s: s.changed("huber_c") and s["loss_type"] not in _HUBER,
        'huber_c = {huber_c} has no effect with loss_type = "{loss_type}"', "only huber and smooth_l1 use it",
        'loss_type = "huber", or leave it out',
    ),
    Rule(
        "huber_schedule", lambda s: s.changed("huber_schedule") and s["loss_type"] not in _HUBER,
        'huber_schedule = "{huber_schedule}" has no effect with loss_type = "{loss_type}"',
        "only huber and smooth_l1 use it", 'loss_type = "huber", or leave it out',
    ),
    Rule(
        "huber_scale",
        lambda s: s.changed("huber_scale") and (s["loss_type"] not in _HUBER or s["huber_schedule"] == "snr"),
        "huber_scale = {huber_scale} has no effect", "the schedule snr does not use it, nor do losses other than huber",
        'huber_schedule = "exponential", or leave it out',
    ),
    stops(
        "scale_v_pred_loss_like_noise_pred",
        lambda s: s.on("scale_v_pred_loss_like_noise_pred") and not s.on("v_parameterization"),
        "scale_v_pred_loss_like_noise_pred needs v_parameterization", "it can be enabled only with v_parameterization",
        "leave it out",
    ),
    stops(
        "v_pred_like_loss", lambda s: s.on("v_pred_like_loss") and s.on("v_parameterization"),
        "v_pred_like_loss excludes v_parameterization", "they cannot be enabled together", "leave one of them out",
    ),
    Rule(
        "zero_terminal_snr", lambda s: s.on("zero_terminal_snr") and not s.on("v_parameterization"),
        "zero_terminal_snr without v_parameterization", "a last step of pure noise cannot be predicted as noise: it only warns",
        "leave it out; SD 1.5 predicts noise", sd15_only=True,
    ),
    Rule(
        "v_parameterization", lambda s: s.on("v_parameterization") and not s.on("v2"),
        "v_parameterization without v2", "SD 1.5 predicts noise: the LoRA would be trained for another target",
        "leave it out, unless the base model is a v-prediction one", sd15_only=True,
    ),
    Rule(
        "min_timestep",
        lambda s: isinstance(s["min_timestep"] or 0, int) and isinstance(s["max_timestep"] or 0, int)
        and (s["min_timestep"] or 0) >= (1000 if s["max_timestep"] is None else s["max_timestep"]),
        "min_timestep = {min_timestep} is not below max_timestep = {max_timestep}", "every step trains the same timestep",
        "min_timestep = 0, max_timestep = 1000",
    ),
)  # fmt: skip

_SAMPLING = ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first")
SAVING = (
    needs("save_last_n_epochs", "save_every_n_epochs", "save_n_epoch_ratio"),
    needs("save_last_n_epochs_state", "save_state"),
    needs("save_last_n_steps", "save_every_n_steps"),
    needs("save_last_n_steps_state", "save_state"),
    needs("save_state_to_huggingface", "save_state", "save_state_on_train_end"),
    needs("log_prefix", "logging_dir"),
    needs("log_tracker_config", "logging_dir", "log_with"),
    needs("async_upload", "huggingface_repo_id", severity="harmless"),
    needs("resume_from_huggingface", "resume", severity="harmless"),
    stops(
        "log_with", lambda s: s["log_with"] in ("tensorboard", "all") and s["logging_dir"] is None,
        'log_with = "{log_with}" needs logging_dir', "logging_dir is required", "set logging_dir",
    ),
    stops(
        "sample_prompts", lambda s: s.on(*_SAMPLING) and s["sample_prompts"] is None,
        "sampling is asked for without sample_prompts", "a TypeError at the first sample", "set sample_prompts",
    ),
    needs("sample_prompts", *_SAMPLING),
    Rule(
        "sample_every_n_steps",
        lambda s: s.on("sample_every_n_steps") and s.on("sample_every_n_epochs"),
        "sample_every_n_steps = {sample_every_n_steps} has no effect", "sample_every_n_epochs overrides it",
        "leave one of them out",
    ),
)  # fmt: skip
