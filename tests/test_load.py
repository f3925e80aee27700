"""Style files, profiles and settings become specs; what is wrong is said all at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brushset.errors import UsageError
from brushset.files import parse_toml_value
from brushset.load import build_spec, check_style_name, load_style, parse_setting, spec_text
from brushset.paths import PROFILES, STYLES
from brushset.spec import StyleSpec

TRIGGERS = {"anime": "anistyle", "watercolor": "wcstyle", "cartoon": "cartoonstyle"}


def write_style(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ntrigger = "mystyle"\n' + text, encoding="utf-8")
    return path


def test_every_shipped_style_loads_with_every_profile() -> None:
    styles, profiles = sorted(STYLES.glob("*.toml")), sorted(PROFILES.glob("*.toml"))
    assert {path.stem for path in styles} == set(TRIGGERS)
    assert {path.stem for path in profiles} >= {"smoke", "h100"}
    for path in styles:
        assert load_style(path).trigger == TRIGGERS[path.stem]
        for profile in profiles:
            load_style(path, profiles=[profile])


def test_the_defaults_are_the_ones_that_the_user_fixed() -> None:
    train = StyleSpec(name="x", trigger="t").train
    assert (train.network_dim, train.network_alpha, train.mixed_precision) == (32, 16.0, "bf16")
    assert (train.unet_lr, train.text_encoder_lr, train.batch_size, train.epochs) == (1e-4, 5e-5, 4, 20)
    assert (train.lr_scheduler, train.lr_warmup_ratio, train.optimizer) == ("cosine", 0.05, "AdamW")
    assert (train.min_snr_gamma, train.keep_tokens, train.caption_dropout_rate) == (5.0, 1, 0.05)
    assert (train.min_bucket_reso, train.max_bucket_reso, train.bucket_reso_steps) == (256, 1024, 64)
    assert (train.seed, train.cache_latents, train.attention) == (42, True, "sdpa")


def test_unknown_key_suggests_the_nearest_one(tmp_path: Path) -> None:
    path = write_style(tmp_path, "[train]\nnetwrok_dim = 8\n")
    with pytest.raises(
        UsageError, match=r'mine\.toml \[train\]: unknown key "netwrok_dim"; did you mean "network_dim"\?'
    ):
        load_style(path)


def test_a_key_in_the_wrong_table_is_told_its_table(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'unknown key "epochs"; it belongs to \[train\]'):
        load_style(write_style(tmp_path, "[dataset]\nepochs = 3\n"))


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = write_style(tmp_path, '[train]\nunet_lr = "1e-4"\noptimizer = "AdamW9bit"\nlernrate = 1\n')
    with pytest.raises(UsageError) as caught:
        load_style(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any("unet_lr = '1e-4'" in line for line in lines)
    assert any("AdamW8bit" in line for line in lines)


def test_impossible_combinations_are_refused_together(tmp_path: Path) -> None:
    text = "[dataset]\nresolution = 2048\n[train]\nshuffle_caption = true\nkeep_tokens = 0\nmin_bucket_reso = 100\n"
    with pytest.raises(UsageError) as caught:
        load_style(write_style(tmp_path, text))
    assert {"max_bucket_reso", "keep_tokens", "multiple"} <= set(re.findall(r"\w+", str(caught.value)))


def test_a_setting_wins_over_a_profile_and_a_profile_over_the_style(tmp_path: Path) -> None:
    style = write_style(tmp_path, "[train]\nepochs = 3\nbatch_size = 3\nseed = 3\n")
    profile = tmp_path / "p.toml"
    profile.write_text("[train]\nepochs = 5\nbatch_size = 5\n", encoding="utf-8")
    train = load_style(style, profiles=[profile], settings=["train.epochs=7"]).train
    assert (train.epochs, train.batch_size, train.seed) == (7, 5, 3)


def test_a_wrong_setting_is_named_as_the_user_typed_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--set train\.epochs=many: input should be a valid integer"):
        load_style(write_style(tmp_path, ""), settings=["train.epochs=many"])


def test_a_style_file_must_bear_its_own_name(tmp_path: Path) -> None:
    path = write_style(tmp_path, "").rename(tmp_path / "other.toml")
    with pytest.raises(UsageError, match='fix: name = "other"'):
        load_style(path)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "CON", "a" * 300, "-x", "é", "all"])
def test_names_that_cannot_be_folders_everywhere_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        check_style_name(name)


@pytest.mark.parametrize("text", ["train", "=3", "a.b.c.d=1", ".x=1"])
def test_a_malformed_setting_shows_the_form(text: str) -> None:
    with pytest.raises(UsageError, match=r"section\.key=value"):
        parse_setting(text)


def test_the_resolved_spec_reads_back_equal(tmp_path: Path) -> None:
    settings = [
        'dataset.images="a \\"b\\" \\\\ ü"',
        'train.optimizer_args=["fused=True"]',
        "train.extra.ip_noise_gamma=0.1",
    ]
    spec = load_style(write_style(tmp_path, ""), settings=settings)
    path = tmp_path / "spec.toml"
    path.write_text(spec_text(spec), encoding="utf-8")
    assert load_style(path) == spec


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r")))
def test_any_folder_name_survives_the_spec_file(name: str) -> None:

    spec = build_spec([("x", {"name": "mine", "trigger": "t", "dataset": {"images": name}})])
    from brushset.files import tomllib

    assert build_spec([("y", tomllib.loads(spec_text(spec)))]) == spec


def test_setting_values_are_toml_where_they_parse_and_text_elsewhere() -> None:
    assert parse_toml_value("3") == 3
    assert parse_toml_value("1e-4") == pytest.approx(1e-4)
    assert parse_toml_value("true") is True
    assert parse_toml_value("runwayml/model") == "runwayml/model"
