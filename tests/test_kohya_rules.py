"""Claims about the rules on combinations: each rule has a case that breaks it alone; and, marked vendor, what the rule
says is what sd-scripts' own code does, from its parser to its schedule."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brushset.files import toml_text
from brushset.kohya.check.rule import Settings
from brushset.kohya.check.rules import TRAINING_RULES, argument_complaints, broken_rules
from brushset.kohya.check.rules_dataset import SUBSET_RULES
from brushset.kohya.source import Source
from brushset.process import child_env

SOUND: dict[str, Any] = {
    "network_module": "networks.lora", "network_dim": 4, "network_alpha": 2.0, "unet_lr": 1e-4, "text_encoder_lr": 5e-5,
    "max_train_epochs": 2, "optimizer_type": "AdamW", "lr_scheduler": "cosine", "max_data_loader_n_workers": 0, "seed": 1,
    "output_dir": "out", "output_name": "x", "pretrained_model_name_or_path": "none",
}  # fmt: skip
PRODIGY = {"optimizer_type": "Prodigy", "unet_lr": 1.0, "text_encoder_lr": 1.0}
HUBER = {"loss_type": "huber"}
Changes = dict[str, Any]

# Text that a rule begins with → changes to a sound TOML that break it; None takes a key away.
BROKEN: dict[str, Changes] = {
    "text_encoder_lr = 0 trains": {"text_encoder_lr": 0},
    "unet_lr = 0 trains": {"unet_lr": 0},
    "text_encoder_lr = 5e-05 has no effect with network_train_unet_only": {"network_train_unet_only": True},
    "text_encoder_lr = [5e-05, 1e-05] names": {"text_encoder_lr": [5e-5, 1e-5]},
    "unet_lr = 0.0001 has no effect with network_train_text": {"network_train_text_encoder_only": True},
    "network_train_unet_only and network_train_text_encoder_only": {
        "network_train_unet_only": True, "network_train_text_encoder_only": True, "unet_lr": None, "text_encoder_lr": None,
        "learning_rate": 1e-4,
    },
    "learning_rate = 0.1 has no effect; both": {"learning_rate": 0.1},
    "learning_rate = 0.1 has no effect; unet": {"learning_rate": 0.1, "network_train_unet_only": True, "text_encoder_lr": None},
    "neither learning_rate nor unet_lr": {"unet_lr": None, "text_encoder_lr": None},
    "neither learning_rate nor text_encoder_lr": {"text_encoder_lr": None},
    "network_dim is not given": {"network_dim": None, "network_alpha": 4},
    "network_alpha is not given": {"network_alpha": None},
    "network_alpha = 0 is taken": {"network_alpha": 0},
    "network_alpha = 0.01 with": {"network_alpha": 0.01},
    "dim_from_weights needs": {"dim_from_weights": True, "network_dim": None, "network_alpha": None},
    "base_weights_multiplier = [1.0]": {"base_weights_multiplier": [1.0]},
    "max_train_steps = 5 has": {"max_train_steps": 5},
    "neither max_train_epochs": {"max_train_epochs": None},
    "resume without": {"resume": "state"},
    "skip_until_initial_step with": {"skip_until_initial_step": True, "gradient_accumulation_steps": 2},
    "debug_dataset = true": {"debug_dataset": True},
    "use_8bit_adam with": {"use_8bit_adam": True},
    "use_lion_optimizer with": {"use_lion_optimizer": True},
    'lr_warmup_steps = 5 with lr_scheduler = "constant"': {"lr_warmup_steps": 5, "lr_scheduler": "constant"},
    "lr_warmup_steps = 5 with lr_scheduler_type": {"lr_warmup_steps": 5, "lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=1"]},
    "lr_warmup_steps = 5.0 is a fraction": {"lr_warmup_steps": 5.0},
    "lr_warmup_steps = 9 is not below": {"lr_warmup_steps": 9, "max_train_epochs": None, "max_train_steps": 9},
    'lr_scheduler = "cosine" has no effect with this': {"optimizer_type": "AdamWScheduleFree"},
    'lr_scheduler = "cosine" has no effect with Adafactor': {"optimizer_type": "Adafactor", "unet_lr": None, "text_encoder_lr": None, "learning_rate": 1e-4},
    "unet_lr and text_encoder_lr have no effect": {"optimizer_type": "Adafactor", "lr_scheduler": "adafactor:1e-4"},
    "unet_lr = 1.0 and text_encoder_lr = 0.5 differ under Prodigy": {**PRODIGY, "text_encoder_lr": 0.5},
    "unet_lr = 1.0 and text_encoder_lr = 0.5 differ under D-": {**PRODIGY, "optimizer_type": "DAdaptAdam", "text_encoder_lr": 0.5},
    'optimizer_type = "Prodigy" finds': {**PRODIGY, "unet_lr": 1e-4, "text_encoder_lr": 1e-4},
    "lr_scheduler_num_cycles = 3": {"lr_scheduler_num_cycles": 3},
    "lr_scheduler_power = 2": {"lr_scheduler_power": 2},
    "lr_scheduler_timescale = 5": {"lr_scheduler_timescale": 5},
    "lr_scheduler_min_lr_ratio = 0.1": {"lr_scheduler_min_lr_ratio": 0.1},
    "lr_decay_steps = 5": {"lr_decay_steps": 5},
    'lr_scheduler = "cosin" is': {"lr_scheduler": "cosin"},
    "full_fp16 with": {"full_fp16": True},
    "full_bf16 with": {"full_bf16": True},
    "fp8_base with": {"fp8_base": True},
    "xformers has no effect with mem": {"mem_eff_attn": True, "xformers": True},
    "sdpa has no effect with mem": {"mem_eff_attn": True, "sdpa": True},
    "sdpa has no effect with xf": {"xformers": True, "sdpa": True},
    "dynamo_backend = eager": {"dynamo_backend": "eager"},
    "persistent_data_loader_workers with": {"persistent_data_loader_workers": True},
    "skip_cache_check = true": {"skip_cache_check": True},
    "cache_latents_to_disk keeps": {"cache_latents_to_disk": True},
    "adaptive_noise_scale needs": {"adaptive_noise_scale": 0.1},
    "noise_offset_random_strength": {"noise_offset_random_strength": True},
    "multires_noise_discount": {"multires_noise_discount": 0.5},
    "ip_noise_gamma_random_strength": {"ip_noise_gamma_random_strength": True},
    "huber_c": {"huber_c": 0.5},
    "huber_schedule": {"huber_schedule": "constant"},
    "huber_scale": {"huber_scale": 2.0, **HUBER},
    "scale_v_pred_loss_like_noise_pred needs": {"scale_v_pred_loss_like_noise_pred": True},
    "v_pred_like_loss excludes": {"v_pred_like_loss": 0.1, "v_parameterization": True, "v2": True},
    "zero_terminal_snr without": {"zero_terminal_snr": True},
    "v_parameterization without": {"v_parameterization": True},
    "min_timestep = 500 is not below": {"min_timestep": 500, "max_timestep": 500},
    "save_last_n_epochs = 2": {"save_last_n_epochs": 2},
    "save_last_n_epochs_state = 2": {"save_last_n_epochs_state": 2},
    "save_last_n_steps = 2": {"save_last_n_steps": 2},
    "save_last_n_steps_state = 2": {"save_last_n_steps_state": 2},
    "save_state_to_huggingface": {"save_state_to_huggingface": True},
    "log_prefix": {"log_prefix": "a"},
    "log_tracker_config": {"log_tracker_config": "a"},
    "async_upload": {"async_upload": True},
    "resume_from_huggingface": {"resume_from_huggingface": True},
    'log_with = "tensorboard" needs': {"log_with": "tensorboard"},
    "sampling is asked for": {"sample_every_n_epochs": 1},
    "sample_prompts = a has": {"sample_prompts": "a"},
    "sample_every_n_steps = 5": {"sample_every_n_steps": 5, "sample_every_n_epochs": 1, "sample_prompts": "a"},
}  # fmt: skip


def changed(changes: Changes) -> Changes:
    return {key: value for key, value in {**SOUND, **changes}.items() if value is not None}


def told(changes: Changes) -> list[str]:
    return ["; ".join(texts) for _, texts in broken_rules(changed(changes))]


def test_a_sound_toml_breaks_no_rule() -> None:
    assert told({}) == []
    assert list(argument_complaints(SOUND)) == []


@pytest.mark.parametrize("start", BROKEN)
def test_each_case_breaks_its_rule_alone(start: str) -> None:
    changes = BROKEN[start]
    beginning = start.replace("; both", "; unet_lr = 0.0001 and") if start.endswith("both") else start
    found = told(changes)
    assert [text for text in found if text.startswith(beginning)], found
    assert len(found) == 1, found


def test_every_rule_is_broken_by_a_case() -> None:
    broken = {id(rule) for changes in BROKEN.values() for rule, _ in broken_rules(changed(changes))}
    missing = [rule.text for rule in TRAINING_RULES if id(rule) not in broken]
    assert missing == []
    assert len(TRAINING_RULES) == len(BROKEN)


SUBSET: dict[str, Any] = {"enable_bucket": True, "resolution": 512, "num_repeats": 1, "image_dir": "a"}
BROKEN_SUBSETS: dict[str, Changes] = {
    "resolution = 512 is below": {"min_bucket_reso": 640},
    "resolution = 512 is above": {"max_bucket_reso": 448},
    "bucket_reso_steps = 32 is not": {"bucket_reso_steps": 32},
    "min_bucket_reso = 300 is not": {"min_bucket_reso": 300},
    "max_bucket_reso = 1000 is not": {"max_bucket_reso": 1000},
    "min_bucket_reso = 320 has no effect with": {"bucket_no_upscale": True, "min_bucket_reso": 320},
    "max_bucket_reso = 2048 has no effect with": {"bucket_no_upscale": True, "max_bucket_reso": 2048},
    "min_bucket_reso = 320 has no effect without": {"enable_bucket": False, "min_bucket_reso": 320},
    "max_bucket_reso = 2048 has no effect without": {"enable_bucket": False, "max_bucket_reso": 2048},
    "bucket_reso_steps = 128 has no effect without": {"enable_bucket": False, "bucket_reso_steps": 128},
    "bucket_no_upscale = true has no effect without": {"enable_bucket": False, "bucket_no_upscale": True},
    "color_aug excludes": {"color_aug": True, "cache_latents": True},
    "random_crop excludes": {"random_crop": True, "cache_latents": True},
    "face_crop_aug_range has": {"face_crop_aug_range": [1.0, 2.0]},
    "keep_tokens = 2 has": {"keep_tokens": 2},
    "keep_tokens_separator": {"keep_tokens_separator": "|||"},
    "token_warmup_min = 5": {"token_warmup_min": 5},
    "network_multiplier = 0.5": {"network_multiplier": 0.5},
    "resize_interpolation": {"resize_interpolation": "x"},
}


@pytest.mark.parametrize("start", BROKEN_SUBSETS)
def test_each_subset_case_breaks_its_rule_alone(start: str) -> None:
    settings = Settings({**SUBSET, **BROKEN_SUBSETS[start]})
    found = [rule.told(settings)[0] for rule in SUBSET_RULES if rule.holds(settings)]
    assert len(found) == 1, found
    assert found[0].startswith(start)


def test_every_subset_rule_is_broken_by_a_case() -> None:
    assert len(SUBSET_RULES) == len(BROKEN_SUBSETS)
    assert not [rule.text for rule in SUBSET_RULES if rule.holds(Settings(SUBSET))]


def test_a_bound_that_the_assertion_needs_is_not_idle() -> None:
    """sd-scripts asserts min ≤ resolution ≤ max even where bucket_no_upscale makes no other use of them."""
    settings = Settings({**SUBSET, "resolution": 128, "bucket_no_upscale": True, "min_bucket_reso": 64})
    assert not [rule.text for rule in SUBSET_RULES if rule.holds(settings)]


# ---- against sd-scripts itself: what it stops at, by the start of what it then says …
STOPS: dict[str, str] = {
    "network_train_unet_only and network_train_text_encoder_only": "ValueError: optimizer got an empty parameter list",
    "dim_from_weights needs": "TypeError",
    "use_8bit_adam with": "AssertionError: both option use_8bit_adam and optimizer_type",
    "use_lion_optimizer with": "AssertionError: both option use_lion_optimizer and optimizer_type",
    'lr_warmup_steps = 5 with lr_scheduler = "constant"': "ValueError: SchedulerType.CONSTANT does not require `num_warmup_steps`",
    "lr_warmup_steps = 5 with lr_scheduler_type": "ValueError: cosine does not require `num_warmup_steps`",
    'lr_scheduler = "cosin" is': "ValueError: cosin is not a valid SchedulerType",
    "persistent_data_loader_workers with": "ValueError: persistent_workers option needs num_workers > 0",
    "adaptive_noise_scale needs": "ValueError: adaptive_noise_scale requires noise_offset",
    "scale_v_pred_loss_like_noise_pred needs": "ValueError: scale_v_pred_loss_like_noise_pred can be enabled only with",
    "v_pred_like_loss excludes": "ValueError: v_pred_like_loss cannot be enabled with v_parameterization",
}
# … what changes nothing that can be seen up to the schedule, so that the rule's "no effect" is true …
IDLE = (
    "text_encoder_lr = [5e-05, 1e-05] names", "learning_rate = 0.1 has no effect; both", "max_train_steps = 5 has",
    "lr_scheduler_num_cycles = 3", "lr_scheduler_power = 2", "lr_scheduler_timescale = 5", "lr_scheduler_min_lr_ratio = 0.1",
    "lr_decay_steps = 5", "sdpa has no effect with xf",
)  # fmt: skip
# … and datasets: changes to [[datasets]] or to the training TOML, and what is then said.
DATASET_STOPS: list[tuple[Changes, Changes, str]] = [
    ({"min_bucket_reso": 256}, {}, "AssertionError: min_bucket_reso must be equal or less than resolution"),
    ({"max_bucket_reso": 64}, {}, "AssertionError: max_bucket_reso must be equal or greater than resolution"),
    ({"bucket_reso_steps": 32}, {}, "AssertionError: bucket_reso_steps is 32. it must be divisible by 64"),
    (
        {"color_aug": True},
        {"cache_latents": True},
        "AssertionError: when caching latents, either color_aug or random_crop",
    ),
    (
        {"random_crop": True},
        {"cache_latents": True},
        "AssertionError: when caching latents, either color_aug or random_crop",
    ),
    ({"resize_interpolation": "x"}, {}, 'AssertionError: Resize interpolation "x" is not a valid'),
    ({"resolution": None}, {}, "AssertionError: resolution is required"),
    ({"num_repeats": -3}, {}, "it would end at once, with exit code 0 and no file"),
    ({}, {"optimizer_args": ["amsgrad=true"]}, "ValueError: malformed node or string"),
    ({}, {"optimizer_args": ["weight_decy=0.1"]}, "TypeError"),
    ({}, {"optimizer_type": "AdamW9bit"}, "AttributeError: module 'torch.optim' has no attribute 'AdamW9bit'"),
    ({}, {"network_args": ["conv_dim"]}, "ValueError: not enough values to unpack"),
    ({}, {"gradient_checkpointing": True, "cpu_offload_checkpointing": True}, "TypeError"),
    ({}, {"fused_backward_pass": True}, "AssertionError: fused_backward_pass currently only works with"),
    ({}, {"keep_tokens": "1"}, "MultipleInvalid"),
]
DATASET_IDLE: list[tuple[Changes, Changes]] = [
    ({"bucket_no_upscale": True, "max_bucket_reso": 2048}, {"_same_as": {"bucket_no_upscale": True}}),
    ({"keep_tokens": 2}, {}),
    ({"keep_tokens_separator": "|||"}, {}),
    ({"network_multiplier": 0.5}, {}),
    ({}, {"network_args": ["conv_dimm=4"]}),
    ({}, {"network_args": ["dropout=0.5"]}),
    ({}, {"network_args": ["conv_alpha=4"]}),
    ({}, {"train_batch_size": 8}),
    ({}, {"resolution": "768,768"}),
    ({}, {"learnig_rate": 1.0}),
    ({}, {"deep": {"a": {"network_dim": 64}}}),
    ({}, {"max_token_length": 75}),
    ({}, {"dataset_repeats": 9}),
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, sd_scripts: Source) -> dict[str, dict[str, Any]]:
    """Every case through sd-scripts' own code, in one process; by name."""
    root = tmp_path_factory.mktemp("cases")
    (root / "images").mkdir()
    for index, (width, height) in enumerate([(128, 128), (100, 100), (240, 80)]):
        Image.fromarray(np.full((height, width, 3), 80 * index, np.uint8)).save(root / "images" / f"{index}.png")
        (root / "images" / f"{index}.txt").write_text(f"ink, thing {index}|||more, again\n")
    pairs: dict[str, tuple[Changes, Changes]] = {"sound": ({}, {})}
    pairs |= {name: ({}, BROKEN[name]) for name in (*STOPS, *IDLE)}
    pairs |= {f"stop {index}": case[:2] for index, case in enumerate(DATASET_STOPS)}
    pairs |= {
        f"idle {index}": (data, {k: v for k, v in train.items() if k != "_same_as"})
        for index, (data, train) in enumerate(DATASET_IDLE)
    }
    pairs["no upscale"] = ({"bucket_no_upscale": True}, {})
    pairs["zero"] = ({}, BROKEN["text_encoder_lr = 0 trains"])
    pairs["absent"] = (
        {"caption_extension": None},
        {
            "unet_lr": None,
            "text_encoder_lr": None,
            "network_dim": None,
            "network_alpha": None,
            "max_train_epochs": None,
        },
    )
    pairs["alpha 0"] = ({}, {"network_alpha": 0})
    pairs["warm-up"] = ({}, {"lr_warmup_steps": 5.0, "max_train_epochs": None, "max_train_steps": 50})
    pairs["schedule-free"] = ({}, {"optimizer_type": "AdamWScheduleFree"})
    words = [_write(root, index, *changes) for index, changes in enumerate(pairs.values())]
    (root / "cases.json").write_text(json.dumps(words))
    argv = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("probe_cases.py"))]
    argv += [str(sd_scripts.folder), str(root / "cases.json"), str(root / "out.json")]
    subprocess.run(
        argv, cwd=root, env=child_env({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}), check=True, capture_output=True
    )
    return dict(zip(pairs, json.loads((root / "out.json").read_text()), strict=True))


def _write(root: Path, index: int, dataset: Changes, training: Changes) -> list[str]:
    base = {
        "resolution": 128,
        "batch_size": 2,
        "enable_bucket": True,
        "min_bucket_reso": 64,
        "caption_extension": ".txt",
        "num_repeats": 2,
    }
    table = {key: value for key, value in {**base, **dataset}.items() if value is not None}
    files = root / f"train{index}.toml", root / f"data{index}.toml"
    files[0].write_text(toml_text(changed(training)))
    files[1].write_text(toml_text({"datasets": [{**table, "subsets": [{"image_dir": "images"}]}]}))
    return ["--config_file", str(files[0]), "--dataset_config", str(files[1])]


def seen(answer: dict[str, Any]) -> dict[str, Any]:
    """What a training would use, without the bounds and options that a rule says are not used."""
    datasets = [
        {key: dataset[key] for key in ("buckets", "images", "batch_size", "batches", "num_train_images")}
        for dataset in answer["train"]
    ]
    return {key: answer[key] for key in ("failed", "network", "steps", "epochs", "optimizer", "lr_curve")} | {
        "datasets": datasets
    }


@pytest.mark.vendor
@pytest.mark.slow
def test_sd_scripts_stops_where_the_rules_say_so(answers: dict[str, dict[str, Any]]) -> None:
    expected = STOPS | {f"stop {index}": case[2] for index, case in enumerate(DATASET_STOPS)}
    wrong = {
        name: answers[name]["failed"]
        for name, start in expected.items()
        if not answers[name]["failed"].startswith(start)
    }
    assert wrong == {}
    assert answers["sound"]["failed"] == ""


@pytest.mark.vendor
@pytest.mark.slow
def test_what_the_rules_call_without_effect_has_none(answers: dict[str, dict[str, Any]]) -> None:
    names = dict.fromkeys(IDLE, "sound")
    names |= {
        f"idle {index}": "no upscale" if "_same_as" in train else "sound"
        for index, (_, train) in enumerate(DATASET_IDLE)
    }
    for name, same in names.items():
        assert seen(answers[name]) == seen(answers[same]), name
    assert seen(answers["no upscale"]) != seen(answers["sound"])


@pytest.mark.vendor
@pytest.mark.slow
def test_the_historical_bugs_are_what_sd_scripts_does(answers: dict[str, dict[str, Any]]) -> None:
    zero = answers["zero"]["network"]
    assert (zero["text_encoder"]["modules"], zero["unet"]["modules"]) == (72, 192)
    assert [group["part"] for group in zero["groups"]] == ["unet"]
    absent = answers["absent"]
    assert absent["steps"] == 1600
    assert absent["network"]["unet"]["dims"] == [4]
    assert absent["network"]["unet"]["scales"] == [0.25]
    assert {group["lr"] for group in absent["network"]["groups"]} == {2e-6}
    assert {image["read"] for image in absent["train"][0]["images"]} == {""}
    assert answers["alpha 0"]["network"]["unet"]["scales"] == [1.0]
    assert max(answers["warm-up"]["lr_curve"][-1]["lr"]) < 0.25 * 1e-4
    assert answers["schedule-free"]["lr_curve"] == []
