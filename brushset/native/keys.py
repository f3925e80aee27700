"""Keys of the TOML pair that native need not act on: those that cannot change what it trains, and those whose value asks
for nothing. sd-scripts' GUI and its published configurations write many of them out, switched off.
"""

from __future__ import annotations

from collections.abc import Mapping

MEANINGLESS: Mapping[str, str] = {
    "pretrained_model_name_or_path": "the base that the run resolved and hashed is trained",
    "tokenizer_cache_dir": "the tokenizer comes with the base",
    "dataset_config": "both files of the pair are given",
    "train_data_dir": "the dataset file says which images; sd-scripts ignores this beside one, too",
    "reg_data_dir": "the dataset file says which images; sd-scripts ignores this beside one, too",
    "in_json": "the dataset file says which images; sd-scripts ignores this beside one, too",
    "output_dir": "files go to the folder of this attempt",
    "console_log_simple": "nothing is printed",
    "console_log_level": "nothing is printed",
    "console_log_file": "the log is logs/train.log",
    "max_data_loader_n_workers": "latents lie in memory: there are no loader processes",
    "persistent_data_loader_workers": "latents lie in memory: there are no loader processes",
    "lowram": "the models are loaded straight to the device",
    "highvram": "the models are loaded straight to the device",
    "cache_info": "sizes and captions are read once a run",
    "cache_latents_to_disk": "latents lie in memory; encoding hundreds of images takes seconds",
    "skip_cache_check": "no cache is read from disk",
    "prior_loss_weight": "weighs regularization images, and a subset of those (is_reg) is refused",
    "sample_prompts": "sampling is asked for by [train] sample_every_n_epochs, of [evaluate] prompts",
    "sample_sampler": "sampling is asked for by [train] sample_every_n_epochs, of [evaluate] prompts",
    "wandb_run_name": "scalars go to TensorBoard",
    "wandb_api_key": "scalars go to TensorBoard",
    "log_config": "the run folder holds both files",
    "ddp_timeout": "one process trains",
    "ddp_gradient_as_bucket_view": "one process trains",
    "ddp_static_graph": "one process trains",
    "huggingface_repo_id": "nothing is uploaded; uploads that are asked for are refused",
    "huggingface_repo_type": "nothing is uploaded; uploads that are asked for are refused",
    "huggingface_repo_visibility": "nothing is uploaded; uploads that are asked for are refused",
    "huggingface_path_in_repo": "nothing is uploaded; uploads that are asked for are refused",
}
"""Keys of either file that cannot change what native trains, and why."""

_NO, _ZERO, _NONE = (False,), (0, 0.0, False), (0, 0.0, False, "")

SWITCHED_OFF: Mapping[str, tuple[object, ...]] = {
    "color_aug": _NO, "random_crop": _NO, "face_crop_aug_range": _NONE, "alpha_mask": _NO, "is_reg": _NO,
    "debug_dataset": _NO, "resize_interpolation": ("",), "network_multiplier": (1, 1.0),
    "v2": _NO, "v_parameterization": _NO, "scale_v_pred_loss_like_noise_pred": _NO, "v_pred_like_loss": _ZERO,
    "masked_loss": _NO, "weighted_captions": _NO, "adaptive_noise_scale": _ZERO,
    "mem_eff_attn": _NO, "full_fp16": _NO, "full_bf16": _NO, "fp8_base": _NO, "fp8_base_unet": _NO,
    "torch_compile": _NO, "dynamo_backend": ("no", "NO", ""), "fused_backward_pass": _NO,
    "cpu_offload_checkpointing": _NO, "deepspeed": _NO,
    "network_dropout": _ZERO, "network_weights": ("",), "network_train_text_encoder_only": _NO,
    "network_args": ([],), "dim_from_weights": _NO, "vae": ("",),
    "use_8bit_adam": _NO, "use_lion_optimizer": _NO, "lr_scheduler_type": ("",),
    "save_state": _NO, "save_state_on_train_end": _NO, "resume": (False, ""), "initial_epoch": _ZERO,
    "initial_step": _ZERO, "skip_until_initial_step": _NO, "save_every_n_steps": _ZERO, "save_last_n_epochs": _ZERO,
    "save_last_n_steps": _ZERO, "save_n_epoch_ratio": _ZERO, "no_metadata": _NO, "output_config": _NO,
    "save_last_n_epochs_state": _ZERO, "save_last_n_steps_state": _ZERO,
    "save_state_to_huggingface": _NO, "resume_from_huggingface": _NO, "async_upload": _NO,
    "sample_every_n_steps": _ZERO, "sample_every_n_epochs": _ZERO, "sample_at_first": _NO,
    "validate_every_n_steps": _ZERO, "validation_split": _ZERO,
}  # fmt: skip
"""Keys of either file that native cannot serve, with the values that ask for nothing; any other value is refused."""


def asks_nothing(key: str, value: object) -> bool:
    """Whether a key, with its value, can be left out without changing what is trained."""
    return key in MEANINGLESS or value in SWITCHED_OFF.get(key, ())
