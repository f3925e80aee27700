"""The file: tensors, hashes by their published rules, metadata that says only what is true."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from native_case import make_run, settings_of
from safetensors import safe_open
from safetensors.torch import save

from brushset.errors import EnvironmentProblem, TrainerFailed
from brushset.files import sha256_file
from brushset.native.checkpoint import checkpoint_name, finish_metadata, write_checkpoint
from brushset.native.dataset import plan_length, read_training_set
from brushset.native.metadata import Origin, model_spec, training_metadata
from brushset.records import BaseFile

BASE = BaseFile(
    name="random:tiny", path="/nowhere", kind="folder", sha256="ab" * 32, random=True, narrow=True
)  # fmt: skip
ORIGIN = Origin(base=BASE, optimizer="torch.optim.adamw.AdamW", started_at=1000.5, version="9.9")


def tensors(values: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"b.lora_up.weight": torch.randn(values, 2, generator=generator), "b.alpha": torch.tensor(2.0)}


def metadata(root: Path, dataset: dict[str, Any] | None = None, **recipe: Any) -> dict[str, str]:
    settings = settings_of(make_run(root, dataset, recipe))
    images = read_training_set(settings)
    length = plan_length(images.plan, settings.dataset, settings.training)
    return training_metadata(settings, images, length, ORIGIN) | model_spec(settings, ORIGIN, 2000.0)


def test_names_are_those_of_sd_scripts() -> None:
    assert checkpoint_name("cartoon") == "cartoon.safetensors"
    assert checkpoint_name("cartoon", 3) == "cartoon-000003.safetensors"


def test_the_file_holds_tensors_metadata_and_its_own_hash(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.safetensors"
    digest = write_checkpoint(path, tensors(), {"ss_seed": "1", "modelspec.title": "x"})
    assert digest == sha256_file(path)
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("b.lora_up.weight"), tensors()["b.lora_up.weight"])
        found = file.metadata()
    assert (found["ss_seed"], found["modelspec.title"]) == ("1", "x")
    content = path.read_bytes()
    assert content[8:10] == b'{"'
    header = int.from_bytes(content[:8], "little")
    assert found["sshs_model_hash"] == hashlib.sha256(content[8 + header :]).hexdigest()
    assert found["sshs_legacy_hash"] == "e3b0c442"  # shorter than 1 MiB
    assert [each.name for each in path.parent.iterdir()] == ["a.safetensors"]


def test_the_old_hash_is_of_64_kib_at_1_mib_of_a_copy_with_only_ss_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, tensors(200_000), {"ss_seed": "1", "modelspec.title": "x" * 1000})
    copy = save(tensors(200_000), {"ss_seed": "1"})
    with safe_open(path, "pt") as file:
        found = file.metadata()["sshs_legacy_hash"]
    assert found == hashlib.sha256(copy[0x100000:0x110000]).hexdigest()[:8]
    assert found != hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]


def test_broken_weights_are_not_written(tmp_path: Path) -> None:
    broken = {**tensors(), "c.lora_up.weight": torch.tensor([[1.0, float("nan")]])}
    with pytest.raises(TrainerFailed, match="1 of 3 tensors hold NaN or infinity, c"):
        write_checkpoint(tmp_path / "a.safetensors", broken, {})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        write_checkpoint(tmp_path / "file" / "a.safetensors", tensors(), {})


def test_all_values_are_text_and_say_what_was_trained(tmp_path: Path) -> None:
    found = finish_metadata(metadata(tmp_path, metadata_trigger_phrase="cartoonstyle"), epoch=2, step=6)
    assert all(isinstance(value, str) for value in found.values())
    expected = {
        "ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_network_module": "networks.lora", "ss_seed": "7",
        "ss_learning_rate": "0.001", "ss_text_encoder_lr": "[0.0005]", "ss_unet_lr": "0.001", "ss_clip_skip": "None",
        "ss_num_train_images": "5", "ss_num_batches_per_epoch": "3", "ss_num_epochs": "2", "ss_max_train_steps": "6",
        "ss_epoch": "2", "ss_steps": "6", "ss_optimizer": "torch.optim.adamw.AdamW", "ss_min_snr_gamma": "5.0",
        "ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_sd_model_name": "random:tiny",
        "ss_training_started_at": "1000.5", "ss_output_name": "cartoon", "ss_mixed_precision": "no",
        "modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.title": "cartoon",
        "modelspec.implementation": "diffusers", "modelspec.implementation_version": "brushset/9.9",
        "modelspec.resolution": "64x64", "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "cartoonstyle", "modelspec.sai_model_spec": "1.0.1",
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected


def test_images_captions_and_buckets_are_told_as_json(tmp_path: Path) -> None:
    found = metadata(tmp_path, {"num_repeats": 2})
    tags = json.loads(found["ss_tag_frequency"])["images"]
    assert tags["cartoonstyle"] == 5
    assert tags["part 3"] == 1
    (dataset,) = json.loads(found["ss_datasets"])
    assert dataset["tag_frequency"] == {"images": tags}
    assert dataset["num_train_images"] == 10
    assert dataset["resolution"] == [64, 64]
    assert dataset["bucket_info"]["buckets"] == {"0": {"resolution": [64, 64], "count": 10}}
    assert dataset["subsets"][0]["img_count"] == 5
    assert json.loads(found["ss_dataset_dirs"]) == {"images": {"n_repeats": 2, "img_count": 5}}


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    found = metadata(tmp_path)
    for key in ("ss_sd_scripts_commit_hash", "ss_new_sd_model_hash", "modelspec.trigger_phrase", "modelspec.author"):
        assert key not in found


def test_a_single_file_base_is_identified_by_both_hashes(tmp_path: Path) -> None:
    checkpoint = tmp_path / "base.safetensors"
    checkpoint.write_bytes(bytes(0x100000) + b"x" * 0x20000)
    base = BASE.model_copy(update={"kind": "single-file", "path": str(checkpoint), "name": str(checkpoint)})
    settings = settings_of(make_run(tmp_path / "run"))
    images = read_training_set(settings)
    length = plan_length(images.plan, settings.dataset, settings.training)
    found = training_metadata(settings, images, length, Origin(base, "", 0.0, ""))
    assert found["ss_sd_model_hash"] == hashlib.sha256(b"x" * 0x10000).hexdigest()[:8]
    assert found["ss_new_sd_model_hash"] == base.sha256
    assert found["ss_sd_model_name"] == "base.safetensors"
