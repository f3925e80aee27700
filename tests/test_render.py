"""Claims about the pair of TOMLs: what sd-scripts does by default and must not, and that files say what specs say."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import toml

from brushset.files import toml_text
from brushset.kohya.check.flags import check_pair
from brushset.kohya.render import flatten, render_dataset, render_training
from brushset.load import build_spec
from brushset.paths import DATASET_CONFIGS, PROFILES, STYLES
from brushset.spec import StyleSpec
from scripts.render_configs import render_configs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def make_spec(
    trigger: str = "inkstyle", description: str = "", dataset: dict[str, Any] | None = None, **train: Any
) -> StyleSpec:
    layer = {"name": "ink", "trigger": trigger, "description": description, "dataset": dataset or {}, "train": train}
    return build_spec([("test", layer)])


def training_of(**train: Any) -> dict[str, Any]:
    return flatten(render_training(make_spec(**train)))


def test_defaults_of_sd_scripts_that_bite_are_all_said() -> None:
    training, dataset = training_of(), render_dataset(make_spec(), 1)
    assert dataset["general"]["caption_extension"] == ".txt"
    assert dataset["general"]["keep_tokens"] == 1
    assert dataset["general"]["enable_bucket"] is True
    assert dataset["datasets"][0]["batch_size"] == 4
    assert dataset["datasets"][0]["resolution"] == 512
    assert training["network_dim"] == 32
    assert training["network_alpha"] == 16.0
    assert training["save_precision"] == "bf16"
    assert training["mixed_precision"] == "bf16"
    assert training["save_model_as"] == "safetensors"
    assert training["seed"] == 42
    assert training["max_data_loader_n_workers"] == 0
    assert training["console_log_simple"] is True
    assert training["sdpa"] is True
    assert training["min_snr_gamma"] == 5.0
    assert training["save_every_n_epochs"] == 1
    assert training["metadata_trigger_phrase"] == "inkstyle"


def test_rates_are_said_thrice_so_that_the_metadata_is_true() -> None:
    training = training_of(unet_lr=2e-4, text_encoder_lr=3e-5)
    assert training["learning_rate"] == training["unet_lr"] == 2e-4
    assert training["text_encoder_lr"] == 3e-5


def test_epochs_and_steps_are_never_both_written() -> None:
    assert "max_train_steps" not in training_of(epochs=7)
    assert training_of(epochs=7)["max_train_epochs"] == 7
    by_steps = training_of(max_steps=9)
    assert by_steps["max_train_steps"] == 9
    assert "max_train_epochs" not in by_steps


def test_warm_up_is_a_fraction_and_constant_has_none() -> None:
    assert training_of(lr_warmup_ratio=0.1)["lr_warmup_steps"] == 0.1
    assert "lr_warmup_steps" not in training_of(lr_warmup_ratio=0.0)
    assert "lr_warmup_steps" not in training_of(lr_scheduler="constant")
    assert training_of(lr_scheduler="constant_with_warmup")["lr_warmup_steps"] == 0.05


def test_what_is_off_by_default_is_left_out() -> None:
    training = training_of(min_snr_gamma=0.0, cache_latents=False)
    for key in (
        "min_snr_gamma", "noise_offset", "clip_skip", "max_token_length", "gradient_checkpointing", "cache_latents",
        "xformers", "network_train_unet_only", "persistent_data_loader_workers", "no_half_vae",
    ):  # fmt: skip
        assert key not in training, key


def test_each_choice_reaches_its_key() -> None:
    training = training_of(
        attention="xformers", gradient_checkpointing=True, clip_skip=2, max_token_length=225, noise_offset=0.05,
        data_loader_workers=2, optimizer="AdamW8bit", optimizer_args=("weight_decay=0.1",), mixed_precision="fp16",
        train_text_encoder=False, max_grad_norm=0.0, gradient_accumulation_steps=3, vae_batch_size=8, save_precision="float",
    )  # fmt: skip
    assert training["xformers"] is True
    assert "sdpa" not in training
    assert training["gradient_checkpointing"] is True
    assert training["clip_skip"] == 2
    assert training["max_token_length"] == 225
    assert training["noise_offset"] == 0.05
    assert training["max_data_loader_n_workers"] == 2
    assert training["persistent_data_loader_workers"] is True
    assert training["optimizer_type"] == "AdamW8bit"
    assert training["optimizer_args"] == ["weight_decay=0.1"]
    assert training["no_half_vae"] is True
    assert training["network_train_unet_only"] is True
    assert "text_encoder_lr" not in training
    assert training["max_grad_norm"] == 0.0
    assert training["gradient_accumulation_steps"] == 3
    assert training["vae_batch_size"] == 8
    assert training["save_precision"] == "float"


def test_adamw_is_fused_unless_something_speaks_against_it() -> None:
    assert training_of()["optimizer_args"] == ["fused=True"]
    assert training_of(optimizer_args=("weight_decay=0.1",))["optimizer_args"] == ["weight_decay=0.1", "fused=True"]
    for args in (("fused=False",), ("foreach=True",), ("fused = True",)):
        assert training_of(optimizer_args=args)["optimizer_args"] == list(args)
    for kept in ({"optimizer": "Lion"}, {"optimizer": "AdamW8bit"}, {"mixed_precision": "fp16"}):
        assert "optimizer_args" not in training_of(**kept)


def test_every_training_field_changes_the_pair_or_is_known_not_to() -> None:
    elsewhere = {  # tf32: native engine only, as its field says; the others rule how the trainer is run and watched
        "engine", "processes", "tf32", "extra", "target_steps", "save_state_minutes", "stall_minutes", "stall_ends",
        "retry_out_of_memory", "pack", "cuda_graphs", "compile",
        "validate_every_n_epochs", "early_stop_patience", "sample_every_n_epochs",
    }  # fmt: skip
    other: dict[str, Any] = {
        "attention": "xformers", "lr_scheduler": "linear", "optimizer": "Lion", "mixed_precision": "fp16",
        "save_precision": "fp16", "optimizer_args": ("weight_decay=0.1",), "max_steps": 3, "max_token_length": 150,
        "min_bucket_reso": 128, "max_bucket_reso": 2048, "bucket_reso_steps": 128, "clip_skip": 2, "repeats": 2,
    }  # fmt: skip
    defaults = make_spec()
    for name, field in type(defaults.train).model_fields.items():
        if name in elsewhere:
            continue
        value = field.default
        changed = other.get(
            name,
            not value
            if isinstance(value, bool)
            else value / 2
            if isinstance(value, float) and value
            else value + 1
            if isinstance(value, int)
            else 0.5,
        )
        spec = make_spec(**{name: changed})
        pair = (render_dataset(spec, spec.train.repeats or 1), render_training(spec))
        assert pair != (render_dataset(defaults, 1), render_training(defaults)), name
        check_pair(*pair)


def test_nothing_of_a_machine_is_in_the_pair() -> None:
    text = toml_text(render_dataset(make_spec(), 1)) + toml_text(render_training(make_spec()))
    assert '= "/' not in text
    assert 'image_dir = "images"' in text
    assert 'output_dir = "weights"' in text


def test_metadata_keys_repeat_what_the_dataset_rules() -> None:
    spec = make_spec(dataset={"resolution": 640}, caption_dropout_rate=0.2)
    training = flatten(render_training(spec))
    assert training["resolution"] == "640,640"
    assert training["caption_dropout_rate"] == render_dataset(spec, 1)["general"]["caption_dropout_rate"] == 0.2


def test_no_key_stands_in_two_sections() -> None:
    tables = render_training(make_spec(max_steps=3, clip_skip=2, noise_offset=0.1))
    assert sum(len(table) for table in tables.values()) == len(flatten(tables))


@pytest.mark.parametrize(
    "odd", ['C:\\x "quoted"', "tab\tand \x7f", "emoji 🎨 漢", "a'b\\u0041", "percent %s {x}", "line\nbreak"]
)
def test_both_readers_read_back_what_was_written(odd: str) -> None:
    spec = make_spec(trigger="a\\b", description=odd, extra={"training_comment": odd, "loss_type": "huber"})
    for tables in (render_dataset(spec, 1), render_training(spec)):
        text = toml_text(tables)
        assert toml.loads(text) == tables
        assert tomllib.loads(text) == tables


def test_checked_in_configs_are_what_the_styles_render_to() -> None:
    rendered = render_configs()
    styles = sorted(path.stem for path in STYLES.glob("*.toml"))
    assert {"anime", "cartoon", "watercolor"} <= set(styles)
    assert len(rendered) == 2 * len(styles)
    kept = {path.name: path.read_text(encoding="utf-8") for path in DATASET_CONFIGS.glob("*.toml")}
    assert kept == rendered, "fix: python -m scripts.render_configs"


def test_every_style_with_every_profile_is_known_to_sd_scripts() -> None:
    from brushset.load import load_style

    combinations = [
        (style, profile) for style in sorted(STYLES.glob("*.toml")) for profile in sorted(PROFILES.glob("*.toml"))
    ]
    assert len(combinations) >= 6
    for style, profile in combinations:
        spec = load_style(style, profiles=[profile])
        check_pair(render_dataset(spec, spec.train.repeats or 1), render_training(spec))
