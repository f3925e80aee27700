"""The TOML pair: everything asked for is honoured, known to be meaningless, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from native_case import make_run, settings_of

from brushset.errors import UsageError
from brushset.files import toml_text, write_atomic
from brushset.kohya.check.flags import known_flags
from brushset.kohya.render import render_dataset, render_training
from brushset.native.keys import MEANINGLESS, SWITCHED_OFF, asks_nothing
from brushset.native.settings import DatasetKeys, TrainingKeys, read_settings
from brushset.spec import StyleSpec


def write(folder: Path, dataset: dict[str, Any], training: dict[str, Any]) -> tuple[Path, Path]:
    paths = folder / "dataset.toml", folder / "training.toml"
    write_atomic(paths[0], toml_text(dataset))
    write_atomic(paths[1], toml_text(training))
    return paths


def test_the_pair_of_the_defaults_is_honoured(tmp_path: Path) -> None:
    spec = StyleSpec(name="cartoon", trigger="cartoonstyle")
    pair = write(tmp_path, render_dataset(spec, 1), render_training(spec))
    settings = read_settings(*pair, root=tmp_path)
    assert settings.image_dir == tmp_path / "images"
    assert settings.training.network_dim == 32
    assert (settings.training.unet_rate, settings.training.text_encoder_rate) == (1e-4, 5e-5)
    assert settings.training.min_snr_gamma == 5.0
    assert settings.dataset.caption_dropout_rate == 0.05
    assert settings.dataset.resolution == 512


def test_every_option_of_the_spec_is_honoured(tmp_path: Path) -> None:
    train = {
        "train_text_encoder": False, "lr_scheduler": "polynomial", "optimizer": "Lion",
        "optimizer_args": ("weight_decay=0.1",), "mixed_precision": "fp16", "save_precision": "float",
        "attention": "xformers", "gradient_checkpointing": True, "gradient_accumulation_steps": 2, "noise_offset": 0.1,
        "shuffle_caption": True, "max_token_length": 225, "clip_skip": 2, "flip_aug": True, "bucket_no_upscale": True,
        "cache_latents": False, "max_steps": 9, "data_loader_workers": 2,
    }  # fmt: skip
    spec = StyleSpec.model_validate({"name": "a", "trigger": "b", "description": "c", "train": train})
    settings = read_settings(*write(tmp_path, render_dataset(spec, 1), render_training(spec)), root=tmp_path)
    recipe = settings.training
    assert (recipe.max_train_steps, recipe.max_train_epochs) == (9, None)
    assert (recipe.clip_skip, recipe.max_token_length, recipe.no_half_vae) == (2, 225, True)
    assert recipe.network_train_unet_only
    assert recipe.xformers
    assert not recipe.sdpa
    assert settings.dataset.flip_aug
    assert settings.dataset.shuffle_caption


def test_what_is_not_honoured_is_refused_all_at_once_with_file_and_key(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"color_aug": True}, {"network_args": ["conv_dim=4"], "resume": "x", "seed": "7"})
    with pytest.raises(UsageError) as caught:
        settings_of(run)
    lines = sorted(str(caught.value).splitlines())
    assert len(lines) == 4
    assert lines[0].startswith(f'{run.dataset_toml}: the native engine does not honour key "color_aug"')
    assert "training.toml: seed = '7'" in lines[1]
    assert 'training.toml: the native engine does not honour key "network_args"' in lines[2]
    assert 'key "resume"' in lines[3]


def test_every_option_of_sd_scripts_is_honoured_meaningless_or_refused(tmp_path: Path) -> None:
    names = set(known_flags()["options"])
    assert len(names) > 150
    known = set(TrainingKeys.model_fields) | set(DatasetKeys.model_fields) | {"train_batch_size", "dataset_repeats"}
    refused = names - known - set(MEANINGLESS)
    assert len(refused) > 60
    run = make_run(tmp_path, training=dict.fromkeys(refused, 7))
    with pytest.raises(UsageError) as caught:
        settings_of(run)
    assert len(str(caught.value).splitlines()) == len(refused)
    settings_of(make_run(tmp_path, training=dict.fromkeys(MEANINGLESS, 1)))


def test_values_beyond_what_is_honoured_are_refused(tmp_path: Path) -> None:
    for key, value in {"loss_type": "weird", "network_module": "lycoris.kohya", "save_model_as": "ckpt"}.items():
        with pytest.raises(UsageError, match=f"training.toml: {key} = '{value}'"):
            settings_of(make_run(tmp_path, training={key: value}))


def test_the_nearest_level_wins(tmp_path: Path) -> None:
    levels = {
        "general": {"num_repeats": 2, "keep_tokens": 2, "flip_aug": True},
        "datasets": [{"keep_tokens": 3, "flip_aug": False, "subsets": [{"image_dir": "images", "keep_tokens": 4}]}],
    }
    training = {"a": {"train_batch_size": 5, "num_repeats": 9, "resolution": "128,128", "seed": 1},
                "b": {"output_name": "x", "network_module": "networks.lora"}}  # fmt: skip
    keys = read_settings(*write(tmp_path, levels, training), root=tmp_path).dataset
    assert (keys.keep_tokens, keys.flip_aug, keys.num_repeats, keys.batch_size) == (4, False, 2, 5)
    assert keys.resolution == 128


def test_a_resolution_that_is_not_square_is_refused(tmp_path: Path) -> None:
    assert settings_of(make_run(tmp_path, {"resolution": [64, 64]})).dataset.resolution == 64
    with pytest.raises(UsageError, match=r"dataset.toml: resolution = \[64, 128\]"):
        settings_of(make_run(tmp_path, {"resolution": [64, 128]}))


def test_two_datasets_are_refused_with_the_engine_that_trains_them(tmp_path: Path) -> None:
    subset = {"subsets": [{"image_dir": "images"}]}
    pair = write(tmp_path, {"datasets": [subset, subset]}, {})
    with pytest.raises(UsageError, match=r'2 datasets.*engine = "kohya"'):
        read_settings(*pair, root=tmp_path)


def test_combinations_that_fail_late_are_refused_early(tmp_path: Path) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"lr_warmup_steps": 0.1}, 'lr_scheduler = "constant" takes no'),
        ({"xformers": True}, "sdpa and xformers"),
        ({"text_encoder_lr": [1e-4, 1e-4]}, "one text encoder"),
        ({"unet_lr": 0.0, "network_train_unet_only": True}, "nothing to train"),
    ]
    for changes, message in bad:
        with pytest.raises(UsageError, match=message):
            settings_of(make_run(tmp_path, training=changes))


def test_bucket_steps_that_sd_scripts_asserts_against_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bucket_reso_steps = 96.*multiple of 64"):
        settings_of(make_run(tmp_path, {"bucket_reso_steps": 96}))


def test_rates_fall_back_to_learning_rate(tmp_path: Path) -> None:
    recipe = settings_of(make_run(tmp_path, training={"unet_lr": None, "text_encoder_lr": None})).training
    assert (recipe.unet_rate, recipe.text_encoder_rate) == (1e-3, 1e-3)


def test_what_is_switched_off_is_taken_and_what_is_on_refused(tmp_path: Path) -> None:
    names = set(known_flags()["options"]) & set(SWITCHED_OFF)
    assert len(names) > 40
    off = {name: SWITCHED_OFF[name][0] for name in names}
    settings_of(make_run(tmp_path, training=off))
    defaults = {name: known_flags()["options"][name].get("default") for name in names}
    given = {name: value for name, value in defaults.items() if value is not None and name != "dynamo_backend"}
    assert [name for name, value in given.items() if not asks_nothing(name, value)] == []
    with pytest.raises(UsageError, match=r'honour key "network_dropout"'):
        settings_of(make_run(tmp_path, training={**off, "network_dropout": 0.1}))


def test_a_dataset_that_is_split_off_whole_is_held_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"shuffle_caption": True}, {"validate_every_n_epochs": 2}, heldout=1)
    settings = settings_of(run)
    assert settings.heldout is not None
    assert (settings.heldout.image_dir, settings.heldout.batch_size) == ("images/heldout", 1)
    assert settings.heldout.resolution == settings.dataset.resolution == 64
    assert (settings.heldout.shuffle_caption, settings.dataset.shuffle_caption) == (False, True)
    assert settings.dataset.image_dir == "images"
    assert settings.training.validate_every_n_epochs == 2


def test_the_pair_of_a_style_that_validates_is_honoured(tmp_path: Path) -> None:
    spec = StyleSpec.model_validate({"name": "a", "trigger": "b", "dataset": {"holdout": 0.1},
                                     "train": {"validate_every_n_epochs": 1}})  # fmt: skip
    settings = read_settings(*write(tmp_path, render_dataset(spec, 3), render_training(spec)), root=tmp_path)
    assert settings.heldout is not None
    assert (settings.heldout.num_repeats, settings.dataset.num_repeats) == (1, 3)


def test_a_share_of_the_training_set_is_not_split_off(tmp_path: Path) -> None:
    dataset = {"datasets": [{"validation_split": 0.2, "resolution": 64, "subsets": [{"image_dir": "images"}]}]}
    with pytest.raises(UsageError, match=r"validation_split = 0.2.*holdout"):
        read_settings(*write(tmp_path, dataset, {}), root=tmp_path)


def test_optimizers_are_spelled_in_any_case_and_cosines_take_their_arguments(tmp_path: Path) -> None:
    changes = {"optimizer_type": "adamw8BIT", "min_timestep": 900, "max_timestep": 100}
    with pytest.raises(UsageError, match="min_timestep = 900 is not below max_timestep = 100"):
        settings_of(make_run(tmp_path, training=changes))
    recipe = settings_of(make_run(tmp_path, training={"optimizer_type": "adamw8BIT", "max_timestep": 500})).training
    assert (recipe.optimizer_type, recipe.timesteps) == ("AdamW8bit", (0, 500))
