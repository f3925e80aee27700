"""Claims about flags.json and the check of every key that is written for sd-scripts, which checks none itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from brushset.errors import UsageError
from brushset.kohya.check.flags import FLAGS_FILE, check_pair, dataset_findings, known_flags, training_findings
from brushset.kohya.render import render_dataset, render_training
from brushset.kohya.source import PINNED_COMMIT, Source
from brushset.load import build_spec
from brushset.spec import TrainSection
from scripts.make_flags import flags_text, make_flags


def extra_findings(**extra: Any) -> list[str]:
    spec = build_spec([("test", {"name": "ink", "trigger": "ink", "train": {"extra": extra}})])
    return training_findings(render_training(spec))


def test_flags_are_those_of_the_pinned_commit() -> None:
    flags = known_flags()
    assert flags["sd_scripts_commit"] == PINNED_COMMIT
    assert len(flags["options"]) == 193
    assert {level: len(keys) for level, keys in flags["dataset"].items()} == {
        "general": 33, "datasets": 33, "datasets of masks": 32, "datasets of metadata": 30,
        "subsets": 26, "subsets of masks": 24, "subsets of metadata": 23,
    }  # fmt: skip
    assert len(flags["elsewhere"]) == 87
    assert not set(flags["elsewhere"]) & set(flags["options"])
    assert flags["options"]["learning_rate"]["default"] == 2e-6
    assert flags["options"]["caption_extension"]["default"] == ".caption"
    assert flags["schedules"][:2] == ["linear", "cosine"]


def test_the_file_is_what_its_writer_writes() -> None:
    assert flags_text(json.loads(FLAGS_FILE.read_text())) == FLAGS_FILE.read_text()


def test_an_unknown_key_suggests_the_nearest_one() -> None:
    found = training_findings({"optimizer": {"learnig_rate": 1e-4}})
    (line,) = found
    assert line == (
        'training.toml [optimizer]: unknown key "learnig_rate"; did you mean "learning_rate"? '
        "sd-scripts ignores it without a word, and learning_rate stays at 2e-06"
    )


def test_findings_come_all_at_once_a_line_each() -> None:
    with pytest.raises(UsageError) as caught:
        check_pair(
            {"general": {"num_repeat": 1}, "datasets": []}, {"training": {"mixed_precision": "bf61", "seed": "7"}}
        )
    lines = str(caught.value).splitlines()
    assert lines == [
        "training.toml [training]: mixed_precision = 'bf61': expected one of no, fp16, bf16",
        "training.toml [training]: seed = '7': expected int",
        'dataset.toml [general]: unknown key "num_repeat"; did you mean "num_repeats"? sd-scripts stops with MultipleInvalid',
        "dataset.toml: no [[datasets]], so there is nothing to train on; sd-scripts ends with exit code 0 and no file",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", "1e-4"), ("learning_rate", True), ("seed", 1.5), ("seed", True), ("sdpa", 1), ("sdpa", "true"),
        ("optimizer_args", "weight_decay=1"), ("optimizer_args", [1]), ("resolution", 512), ("max_token_length", 75),
        ("save_model_as", "diffusers"), ("text_encoder_lr", "5e-5"), ("lr_warmup_steps", "5%"), ("loss_type", "L2"),
    ],
)  # fmt: skip
def test_wrong_types_and_choices_are_found(key: str, value: object) -> None:
    found = training_findings({"training": {key: value}})
    assert len(found) == 1
    assert f"{key} = {value!r}: expected" in found[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 1), ("seed", 1), ("sdpa", True), ("optimizer_args", ["eps=1e-8"]), ("text_encoder_lr", 5e-5),
        ("text_encoder_lr", [5e-5]), ("lr_warmup_steps", 0.05), ("lr_warmup_steps", 100), ("max_token_length", 150),
    ],
)  # fmt: skip
def test_right_types_pass(key: str, value: object) -> None:
    assert training_findings({"training": {key: value, "lr_scheduler": "cosine"}}) == []


@pytest.mark.parametrize(
    ("tables", "finding"),
    [
        ({"datasets": [{"subsets": []}]}, "takes for a ControlNet dataset"),
        ({"datasets": [{"subsets": [{"num_repeats": 1}]}]}, '"image_dir" is missing'),
        ({"datasets": [{"subsets": [{"image_dir": "a", "alpha_mask": 1}]}]}, "alpha_mask = 1: expected bool"),
        ({"general": {"alpha_mask": True}}, 'unknown key "alpha_mask"'),
        ({"general": {"resolution": "64,64"}}, "expected int or pair"),
        ({"general": {"validation_split": 0}}, "validation_split = 0: expected float"),
        ({"generl": {}}, 'unknown table "generl"; did you mean "general"?'),
    ],
)
def test_the_dataset_schema_is_strict_at_each_level(tables: dict[str, Any], finding: str) -> None:
    whole = {"datasets": [{"subsets": [{"image_dir": "images"}]}], **tables}
    found = dataset_findings(whole)
    assert len(found) == 1
    assert finding in found[0]


def test_extra_options_reach_training_and_are_checked_where_the_user_wrote_them() -> None:
    assert extra_findings(ip_noise_gamma=0.1, debiased_estimation_loss=True, network_args=["rank_dropout=0.1"]) == []
    (unknown,) = extra_findings(ip_noise_gama=0.1)
    assert unknown.startswith(
        '[train.extra]: unknown key "ip_noise_gama"; did you mean "ip_noise_gamma"? sd-scripts ig'
    )
    assert extra_findings(loss_type="l3") == [
        "[train.extra]: loss_type = 'l3': expected one of l1, l2, huber, smooth_l1"
    ]


@pytest.mark.parametrize(
    ("key", "value", "finding"),
    [
        ("learning_rate", 1e-3, "is ruled by [train] unet_lr"),
        ("network_dim", 64, "is ruled by [train] network_dim"),
        ("keep_tokens", 2, "is ruled by [train] keep_tokens"),
        ("output_dir", "/tmp", "is refused: brushset sets it"),
        ("resume", "state", "goes on from it itself"),
        ("save_last_n_epochs", 2, "goes on from it itself"),
        ("huggingface_token", "x", "gets no tokens"),
        ("base_weights", ["a"], "not be the plain SD 1.5 adapter"),
        ("cache_latents_to_disk", True, "reuses latents of changed images"),
        ("network_args", ["conv_dimm=4"], '"conv_dimm" is not one of'),
        ("network_args", ["conv_dim=4"], '"conv_dim" is not one of'),
    ],
)  # fmt: skip
def test_extra_options_that_would_undo_what_brushset_relies_on_are_refused(
    key: str, value: object, finding: str
) -> None:
    found = extra_findings(**{key: value})
    assert len(found) == 1
    assert finding in found[0]


def test_refusals_name_options_that_exist() -> None:
    from brushset.kohya.check import flags

    options = known_flags()["options"]
    assert set(flags._REFUSED) <= options.keys()
    assert set(flags._RULED_BY) <= options.keys()
    fields = {ruler.split()[1] for ruler in flags._RULED_BY.values() if ruler.startswith("[train] ")}
    assert fields <= TrainSection.model_fields.keys()


def test_every_key_we_write_is_known() -> None:
    spec = build_spec([("test", {"name": "ink", "trigger": "ink"})])
    check_pair(render_dataset(spec, 1), render_training(spec))
    known = known_flags()["options"]
    assert all(key in known for table in render_training(spec).values() for key in table)


@pytest.mark.vendor
@pytest.mark.slow
def test_flags_are_what_sd_scripts_says_today(sd_scripts: Source) -> None:
    if sd_scripts.commit != PINNED_COMMIT:
        pytest.skip(f"sd-scripts is at {sd_scripts.commit}, flags.json is for {PINNED_COMMIT}")
    assert flags_text(make_flags(sd_scripts.folder, sd_scripts.commit)) == FLAGS_FILE.read_text()
