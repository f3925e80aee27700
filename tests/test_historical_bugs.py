"""The worst silent misconfigurations in the history of Kohya's GUIs, each caught by name.

Each is one that trained for hours and left a file that looked well: in a TOML that a user has (`validate`), and, where a
style could say the same, in a style.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from brushset.errors import UsageError
from brushset.kohya.check.findings import Finding
from brushset.kohya.check.flags import check_pair
from brushset.kohya.check.pace import pace_warning
from brushset.kohya.check.validate import validate_files
from brushset.kohya.render import render_dataset, render_training
from brushset.load import build_spec
from brushset.spec import StyleSpec

SOUND = {
    "network_module": '"networks.lora"', "network_dim": "32", "network_alpha": "16", "unet_lr": "1e-4",
    "text_encoder_lr": "5e-5", "max_train_epochs": "20", "caption_extension": '".txt"', "resolution": '"512,512"',
    "mixed_precision": '"bf16"', "cache_latents": "true", "enable_bucket": "true",
}  # fmt: skip


def wrong_in(folder: Path, dataset: str = "", **changes: str | None) -> list[Finding]:
    """The wrong findings on a sound training TOML with some keys changed, or left out where None."""
    keys = {key: value for key, value in {**SOUND, **changes}.items() if value is not None}
    training = folder / "train.toml"
    training.write_text("".join(f"{key} = {value}\n" for key, value in keys.items()), encoding="utf-8")
    paths = [training]
    if dataset:
        paths.append(folder / "data.toml")
        paths[1].write_text(dataset, encoding="utf-8")
    return [finding for report in validate_files(paths) for finding in report.findings if finding.severity == "wrong"]


def style(**train: object) -> StyleSpec:
    return build_spec([("test", {"name": "ink", "trigger": "ink", "train": train})])


def check_style(**train: object) -> None:
    spec = style(**train)
    check_pair(render_dataset(spec, 1), render_training(spec))


def test_a_sound_file_has_nothing_wrong(tmp_path: Path) -> None:
    assert wrong_in(tmp_path) == []


@pytest.mark.parametrize("zero", ["0", "0.0", "[0.0]"])
def test_text_encoder_lr_0_so_that_every_lora_was_unet_only(tmp_path: Path, zero: str) -> None:
    (finding,) = wrong_in(tmp_path, text_encoder_lr=zero)
    assert finding.path == ("text_encoder_lr",)
    assert "its 72 modules are made, never trained and saved as zeros: the LoRA is UNet-only" in finding.message
    assert wrong_in(tmp_path, text_encoder_lr=None, network_train_unet_only="true") == []


def test_text_encoder_lr_0_in_a_style(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"text_encoder_lr = 0.*greater than 0"):
        style(text_encoder_lr=0.0)
    with pytest.raises(UsageError, match=r"\[train.extra\]: text_encoder_lr is ruled by \[train\] text_encoder_lr"):
        check_style(extra={"text_encoder_lr": 0})


def test_the_caption_default_that_passes_over_every_txt_file(tmp_path: Path) -> None:
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (64, 64)).save(images / "0.png")
    (images / "0.txt").write_text("ink, a cat")
    dataset = f"[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = '{images}'\n"
    (finding,) = wrong_in(tmp_path, dataset, caption_extension=None)
    assert (
        "caption_extension .caption, which is sd-scripts' default, finds no caption for 1 of 1 images" in finding.text
    )
    assert finding.effect == "they train with empty captions, exit code 0"
    assert finding.fix == 'caption_extension = ".txt": such files are there'
    assert wrong_in(tmp_path, dataset) == []
    (images / "0.caption").write_text("ink, a cat")
    assert wrong_in(tmp_path, dataset, caption_extension=None) == []


def test_the_caption_default_where_the_folder_is_elsewhere(tmp_path: Path) -> None:
    dataset = '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "/no/such"\n'
    texts = [finding.message for finding in wrong_in(tmp_path, dataset, caption_extension=None)]
    assert any('its default is ".caption": every .txt file is passed over' in text for text in texts)


def test_the_caption_extension_in_a_style() -> None:
    assert render_dataset(style(), 1)["general"]["caption_extension"] == ".txt"
    with pytest.raises(UsageError, match="caption_extension is refused: brushset sets it"):
        check_style(extra={"caption_extension": ".caption"})


def test_max_train_steps_silently_1600(tmp_path: Path) -> None:
    (finding,) = wrong_in(tmp_path, max_train_epochs=None)
    assert finding.message.startswith("neither max_train_epochs nor max_train_steps is given")
    assert "trains 1600 steps, however many images there are" in finding.message
    (misspelled,) = [
        item for item in wrong_in(tmp_path, max_train_epochs=None, max_train_epoch="20") if item.path != ()
    ]
    assert 'did you mean "max_train_epochs"?' in misspelled.text
    assert wrong_in(tmp_path, max_train_epochs=None, max_train_steps="500") == []


def test_max_train_steps_silently_overridden(tmp_path: Path) -> None:
    (finding,) = wrong_in(tmp_path, max_train_steps="500")
    assert finding.message.startswith("max_train_steps = 500 has no effect; max_train_epochs = 20 overrides it")


def test_the_length_of_a_style_is_always_said() -> None:
    assert "max_train_epochs" in render_training(style())["training"]
    with pytest.raises(UsageError, match=r"max_train_steps is ruled by \[train\] max_steps"):
        check_style(extra={"max_train_steps": 1600})


def test_a_misspelled_key_that_let_lr_fall_to_2e_6(tmp_path: Path) -> None:
    found = wrong_in(tmp_path, unet_lr=None, text_encoder_lr=None, learnig_rate="1e-4")
    by_path = {finding.path: finding.message for finding in found}
    assert "learning_rate stays at 2e-06" in by_path["learnig_rate",]
    assert "the UNet trains at 2e-06" in by_path[()]
    assert len(found) == 2


def test_one_rate_alone_that_let_the_text_encoder_fall_to_2e_6(tmp_path: Path) -> None:
    (finding,) = wrong_in(tmp_path, text_encoder_lr=None)
    assert "the text encoder trains at 2e-06" in finding.message


def test_a_misspelled_key_that_let_dim_fall_to_4(tmp_path: Path) -> None:
    found = wrong_in(tmp_path, network_dim=None, netwrok_dim="32")
    messages = [finding.message for finding in found]
    assert any('unknown key "netwrok_dim"; did you mean "network_dim"?' in text for text in messages)
    assert any(text.startswith("network_dim is not given; the LoRA gets rank 4") for text in messages)


def test_misspelled_keys_in_a_style() -> None:
    with pytest.raises(UsageError, match='unknown key "netwrok_dim"; did you mean "network_dim"'):
        style(netwrok_dim=32)
    with pytest.raises(UsageError, match=r'\[train.extra\]: unknown key "learnig_rate"; did you mean "learning_rate"'):
        check_style(extra={"learnig_rate": 1e-4})


def test_alpha_dim_changed_without_the_rate(tmp_path: Path) -> None:
    (absent,) = wrong_in(tmp_path, network_alpha=None)
    assert "alpha is 1: the LoRA acts with alpha/dim = 0.03125" in absent.message
    (weak,) = wrong_in(tmp_path, network_dim="128", network_alpha="1")
    assert "alpha/dim = 0.0078125" in weak.message
    assert "alpha/dim was changed without it" in weak.message
    (strong,) = wrong_in(tmp_path, network_dim="1", network_alpha="64")
    assert "alpha/dim = 64" in strong.message
    (zero,) = wrong_in(tmp_path, network_alpha="0")
    assert zero.message.startswith("network_alpha = 0 is taken as network_dim")


def test_alpha_dim_changed_without_the_rate_in_a_style() -> None:
    assert pace_warning(style().train) == ""
    warning = pace_warning(style(network_dim=8).train)
    assert "network_alpha/network_dim = 16/8 = 2 with rates that suit 0.5: the adapter moves 4 times as fast" in warning
    assert pace_warning(style(network_dim=8, unet_lr=2e-5).train) == ""
    with pytest.raises(UsageError, match=r"network_alpha is ruled by \[train\] network_alpha"):
        check_style(extra={"network_alpha": 1})
