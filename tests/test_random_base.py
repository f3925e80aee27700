from __future__ import annotations

from pathlib import Path

import pytest

from brushset.bases.configs import TINY
from brushset.bases.keep import make_once
from brushset.bases.random_sd15 import make_random_base, write_random_base
from brushset.errors import EnvironmentProblem
from brushset.files import digest_files, list_files
from brushset.records import BaseFile


def emit(event: str, /, **fields: object) -> None:
    """Nobody listens."""


def digests(folder: Path) -> dict[str, str]:
    return digest_files(list_files(folder), folder)


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_weights(tiny_base: BaseFile, tmp_path: Path) -> None:
    write_random_base(tmp_path / "again", TINY)
    write_random_base(tmp_path / "other", TINY, seed=1)
    made = digests(Path(tiny_base.path))
    assert len(made) == 13
    assert digests(tmp_path / "again") == made
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert digests(tmp_path / "other")[weights] != made[weights]


def test_it_is_made_once(tiny_base: BaseFile) -> None:
    before = Path(tiny_base.path).stat().st_mtime_ns
    assert str(make_random_base("random:tiny", emit)) == tiny_base.path
    assert Path(tiny_base.path).stat().st_mtime_ns == before


def test_a_broken_attempt_leaves_nothing_under_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*ignored: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("BRUSHSET_CACHE", str(tmp_path))
    monkeypatch.setattr("brushset.bases.random_sd15.write_tokenizer", stop)
    with pytest.raises(KeyboardInterrupt):
        make_random_base("random:tiny", emit)
    assert [path for path in (tmp_path / "bases").iterdir() if path.suffix != ".lock"] == []


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    left = tmp_path / ".tmp-model-abc"
    left.mkdir()
    made = make_once(tmp_path / "model", lambda folder: (folder / "x").touch())
    assert made == tmp_path / "model"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "model"]


def test_a_cache_that_cannot_be_written_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match="BRUSHSET_CACHE"):
        make_once(tmp_path / "file" / "model", Path.mkdir)


def test_a_full_disk_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRUSHSET_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 1 << 20})())
    with pytest.raises(EnvironmentProblem, match="BRUSHSET_CACHE"):
        make_random_base("random:sd15", emit)


def test_it_loads_as_diffusers_and_sd_scripts_load_it(tiny_base: BaseFile) -> None:
    from diffusers import StableDiffusionPipeline

    from brushset.bases.load import quiet_diffusers

    with quiet_diffusers():
        pipeline = StableDiffusionPipeline.from_pretrained(tiny_base.path, tokenizer=None, safety_checker=None)
    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size


def test_activations_stay_near_one_through_all_parts(tiny_base: BaseFile) -> None:
    import torch

    from brushset.bases.load import load_components

    parts = load_components(tiny_base)
    noise = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=noise) * 2 - 1
    latents = parts.vae.encode(image).latent_dist.mean
    tokens = parts.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    text = parts.text_encoder(tokens).last_hidden_state
    predicted = parts.unet(latents, 500, text).sample
    decoded = parts.vae.decode(latents).sample
    for value in (latents, text, predicted, decoded):
        assert 0.1 < value.std().item() < 3


def test_the_prompt_reaches_the_unet(tiny_base: BaseFile) -> None:
    import torch

    from brushset.bases.load import load_components

    parts = load_components(tiny_base, parts=("unet", "text_encoder", "tokenizer"))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for prompt in ("a cat", "a landscape with mountains"):
        tokens = parts.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
        outputs.append(parts.unet(latents, 500, parts.text_encoder(tokens).last_hidden_state).sample)
    assert (outputs[0] - outputs[1]).norm() > 1e-3 * outputs[0].norm()
