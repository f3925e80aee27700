"""The extractors: real loading code on small files, against transformers, open_clip, torchmetrics; what is kept; what lacks."""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path

import imagehash
import numpy as np
import pytest
import torch
from eval_case import noise_images
from PIL import Image

from brushset.errors import EnvironmentProblem, UsageError, VerificationFailed
from brushset.spec import EvaluateSection, StyleSpec
from eval import made_up, networks
from eval.csd import build_csd, read_csd_state
from eval.embedder import Embedder, Identity, Towers
from eval.frames import Frame, image_key
from eval.kept import KeptVectors
from eval.look import Missing, load_extractors
from eval.lpips import load_lpips
from eval.metric import NotMeasured
from eval.preprocess import CLIP_MEAN, CLIP_STD, Preprocess, fitted, open_rgb

MAKERS = (made_up.make_clip, made_up.make_csd, made_up.make_dinov2, made_up.make_inception)


def counting(calls: list[int], kept: KeptVectors | None = None, **changes: object) -> Embedder:
    """Mean colours, and how many images were looked at in each call."""

    def rows(images: Sequence[Image.Image]) -> np.ndarray:
        calls.append(len(images))
        return np.stack([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) for image in images])

    identity = Identity("mean colour", "", meaningful=True)
    return Embedder(identity, lambda: Towers(rows), kept=kept, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", MAKERS)
def test_the_batch_size_changes_no_vector(make):
    images = noise_images(9, 7)
    found = [
        Embedder(make("cpu").identity, make("cpu").load, make("cpu").unit, batch_size).encode_images(images)
        for batch_size in (1, 4, 64)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", MAKERS)
def test_made_up_networks_are_the_same_twice_leave_the_random_state_alone_and_say_what_they_are(make):
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = make("cpu").encode_images(noise_images(3, 0))
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(make("cpu").encode_images(noise_images(3, 0)), first)
    assert make("cpu").id.startswith("made-up")
    assert not make("cpu").meaningful


def test_vectors_are_float32_of_unit_length_and_only_clip_reads_text():
    clip, csd = made_up.make_clip("cpu"), made_up.make_csd("cpu")
    for found in (clip.encode_images(noise_images(3, 0)), clip.encode_texts(["a", "b c", "d " * 100])):
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    with pytest.raises(NotMeasured, match="reads no text"):
        csd.encode_texts(["a"])
    assert clip.encode_images([]).shape[0] == 0


def test_every_distinct_image_is_looked_at_once_and_kept_for_the_next_process(tmp_path: Path):
    calls: list[int] = []
    images = noise_images(5, 1)
    embedder = counting(calls, KeptVectors(tmp_path / "v.sqlite3"), batch_size=4)
    first = embedder.encode_images([*images, *images])
    embedder.encode_images(images[::-1])
    assert calls == [4, 1]
    again = counting(calls, KeptVectors(tmp_path / "v.sqlite3")).encode_images([*images, *images])
    assert calls == [4, 1]
    np.testing.assert_array_equal(again, first)
    other = Embedder(Identity("other", "", meaningful=True), embedder.load, kept=KeptVectors(tmp_path / "v.sqlite3"))
    other.encode_images(images)
    assert calls == [4, 1, 5]


def test_the_key_of_an_image_is_its_pixels_and_shape():
    image = noise_images(1, 0, (6, 4))[0]
    assert image_key(image) == image_key(image.copy())
    turned = Image.frombytes("RGB", (4, 6), image.tobytes())
    assert image_key(turned) != image_key(image)


def test_old_vectors_go_where_too_many_are_kept_and_a_damaged_table_is_told(tmp_path: Path):
    kept = KeptVectors(tmp_path / "v.sqlite3", most_bytes=1 << 20)
    for number in range(40):
        kept.write("x", {f"{number} {index}": np.zeros(1000, np.float32) for index in range(10)})
    assert not kept.read("x", ["0 0"])
    assert kept.read("x", ["39 9"])
    (tmp_path / "v.sqlite3").write_bytes(b"no table" * 1000)
    with pytest.raises(EnvironmentProblem, match="fix: free the disk or its permissions, or delete the file"):
        kept.read("x", ["0"])


@pytest.mark.parametrize("size", [(48, 40), (500, 333), (30, 30)])
def test_preprocessing_is_that_of_transformers_slow_processor(size: tuple[int, int]):
    from transformers import CLIPImageProcessor

    images = noise_images(2, 3, size)
    theirs = CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=32)(images=images, return_tensors="np")
    ours = Preprocess(40, 32, CLIP_MEAN, CLIP_STD)(images)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs["pixel_values"], atol=1e-5)


def test_generated_images_and_references_are_fitted_by_one_code(tmp_path: Path):
    noise_images(1, 0, (90, 60))[0].save(tmp_path / "wide.png")
    noise_images(1, 0, (32, 32))[0].save(tmp_path / "fits.png")
    assert fitted(open_rgb(tmp_path / "wide.png"), (32, 32)).size == (32, 32)
    kept = fitted(open_rgb(tmp_path / "fits.png"), (32, 32))
    assert kept.tobytes() == noise_images(1, 0, (32, 32))[0].tobytes()


def clip_folder(folder: Path) -> Path:
    """A narrow CLIP as transformers writes it, with a tokenizer of letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = tower | {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=32)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def test_clip_is_loaded_from_its_folder_and_its_score_is_torchmetrics(tmp_path: Path):
    from torchmetrics.multimodal.clip_score import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    folder = clip_folder(tmp_path / "clip")
    clip = networks.load_clip(str(folder), "cpu", None)
    assert clip.meaningful
    assert "PIL bicubic 32, centre 32, CLIP's mean" in clip.id
    assert clip.identity.sha256[:12] in clip.id
    images, prompts = noise_images(6, 0), ["a cat", "a dog", "a house", "rain", "a lake", "a girl"]
    cosines = (clip.encode_images(images) * clip.encode_texts(prompts)).sum(axis=1)
    processor = CLIPProcessor.from_pretrained(folder, local_files_only=True, use_fast=False)
    model = CLIPModel.from_pretrained(folder)
    metric = CLIPScore(lambda: (model, processor))
    for image, prompt in zip(images, prompts, strict=True):
        metric.update(torch.from_numpy(np.array(image)).permute(2, 0, 1), prompt)
    assert max(100 * cosines.mean(), 0) == pytest.approx(float(metric.compute()), abs=1e-3)


def csd_state(width: int = 64, layers: int = 2) -> tuple[dict[str, torch.Tensor], torch.nn.Module]:
    """A narrow CSD by the published names, and the same as open_clip's tower."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    torch.manual_seed(0)
    tower = VisionTransformer(
        image_size=224, patch_size=56, width=width, layers=layers, heads=width // 64, mlp_ratio=4, output_dim=24,
        act_layer=QuickGELU,
    ).eval()  # fmt: skip
    state = {f"backbone.{name}": tensor for name, tensor in tower.state_dict().items() if name != "proj"}
    heads = {"last_layer_style": tower.proj.detach(), "last_layer_content": torch.randn(width, 24)}
    return state | heads, tower


def rename_in_pickle(file: Path, before: bytes, after: bytes) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = {item: archive.read(item) for item in archive.infolist()}
    assert any(before in content for content in entries.values())
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for item, content in entries.items():
            archive.writestr(item, content.replace(before, after) if item.filename.endswith("data.pkl") else content)


@pytest.mark.parametrize("kind", ["pickle of a training", "pickle by NumPy 1", "safetensors"])
def test_csd_reads_the_published_names_and_equals_open_clips_tower(tmp_path: Path, kind: str):
    state, tower = csd_state()
    if kind == "safetensors":
        from safetensors.torch import save_file

        file = tmp_path / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    else:
        file = tmp_path / "pytorch_model.bin"
        whole = {f"module.{name}": tensor for name, tensor in state.items()}
        extra = {"iter": np.float64(3), "args": argparse.Namespace(lr=1e-4), "opt_bb": {"state": {}}}
        torch.save({"model_state_dict": whole, **extra}, file)
        if kind == "pickle by NumPy 1":  # as the published file was written
            rename_in_pickle(file, b"numpy._core.multiarray", b"numpy.core.multiarray")
    csd = networks.load_csd(str(file), "cpu", None)
    images = noise_images(3, 1)
    with torch.inference_mode():
        expected = tower(torch.from_numpy(Preprocess(224, 224)(images)))
    expected = expected / expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(csd.encode_images(images), expected.numpy(), atol=2e-5)


def test_a_csd_file_with_other_tensors_or_with_code_in_it_is_refused(tmp_path: Path):
    state, _ = csd_state()
    with pytest.raises(VerificationFailed, match="no last_layer_style"):
        build_csd({name: tensor for name, tensor in state.items() if "style" not in name}, "x")
    with pytest.raises(VerificationFailed, match="not CSD's weights"):
        build_csd({name: tensor for name, tensor in state.items() if "ln_post.weight" not in name}, "x")
    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"model_state_dict": Path("/tmp/x")}, 2))
    with pytest.raises(VerificationFailed, match="not read as CSD's weights"):
        read_csd_state(tmp_path / "evil.bin")


def test_dinov2_is_the_class_token_of_transformers_model(tmp_path: Path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=224, patch_size=56)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    images = noise_images(2, 4)
    found = networks.load_dinov2(str(tmp_path / "dino"), "cpu", None).encode_images(images)
    pixels = Preprocess(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(images)
    with torch.inference_mode():
        token = model(torch.from_numpy(pixels)).pooler_output
    np.testing.assert_allclose(found, torch.nn.functional.normalize(token, dim=1).numpy(), atol=1e-5)


def test_inceptions_own_weights_file_is_loaded_and_one_with_code_in_it_is_not(tmp_path: Path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    network = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr("torch.nn.Module.load_state_dict", lambda *_: None)
        network.__init__("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    loaded = networks.load_inception(str(tmp_path / "weights.pth"), "cpu", None)
    assert loaded.meaningful
    assert loaded.encode_images(noise_images(2, 0)).shape == (2, 2048)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"fc": Path("/tmp/x")}, 2))
    with pytest.raises(VerificationFailed, match="not a file of tensors alone"):
        networks.load_inception(str(tmp_path / "evil.pth"), "cpu", None).encode_images(noise_images(1, 0))


def test_lpips_is_torchmetrics_on_the_alexnet_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    from torchvision.models import alexnet

    torch.manual_seed(0)
    state = alexnet(weights=None).state_dict()
    torch.save(state, tmp_path / "alexnet.pth")
    found = load_lpips(str(tmp_path / "alexnet.pth"), "cpu")
    images = noise_images(5, 2, (64, 64))
    column = found.within_prompts([*map(Frame.of, images)], [0, 0, 0, 1, 2])
    assert np.isnan(column[3:]).all()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    metric = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 for image in images]

    def distance(a: int, b: int) -> float:
        metric.reset()
        metric.update(pixels[a], pixels[b])
        return float(metric.compute())

    expected = [(distance(0, 1) + distance(0, 2)) / 2, (distance(0, 1) + distance(1, 2)) / 2]
    np.testing.assert_allclose(column[:2, 0], expected, rtol=1e-4)


def test_made_up_lpips_says_nothing_and_counts_pairs():
    found = made_up.make_lpips("cpu")
    assert not found.identity.meaningful
    first, second = map(Frame.of, noise_images(2, 5))
    column = found.within_prompts([first, second, first], [0, 0, 0])
    assert column[0, 0] == pytest.approx(column[2, 0])
    assert column[1, 0] == pytest.approx(2 * column[0, 0], rel=1e-5)


def test_dhash_rows_are_imagehashs_bits():
    images = noise_images(3, 6, (64, 64))
    rows = networks.load_dhash().encode_images(images)
    assert rows.shape == (3, 64)
    apart = imagehash.dhash(images[0]) - imagehash.dhash(images[1])
    assert int((rows[0] != rows[1]).sum()) == apart


def test_weights_that_are_not_to_be_had_leave_a_gap_with_its_reason_and_nothing_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    found = load_extractors(StyleSpec(name="ink", trigger="inkstyle"))
    missing = {name: extractor for name, extractor in found.items() if isinstance(extractor, Missing)}
    assert set(missing) == {"clip", "csd", "dinov2", "inception", "lpips"}
    for extractor in missing.values():
        assert "not on this machine" in extractor.identity.note
        assert "orchestrate.py fetch-models" in extractor.identity.note
        assert not extractor.identity.meaningful


def test_wrong_names_are_usage_errors_and_a_damaged_folder_is_one_of_environment(tmp_path: Path):
    wrong = {
        "inception": "nowhere.pth",
        "clip_model": "no such name!",
        "csd_model": "nowhere.bin",
        "lpips_model": "vgg",
    }
    for key, value in wrong.items():
        settings = EvaluateSection(
            **{"clip_model": "random", "csd_model": "random", "dinov2_model": "random", "inception": "random"} | {key: value}
        )  # fmt: skip
        with pytest.raises(UsageError, match=rf'\[evaluate\] {key} = "{value}'):
            load_extractors(StyleSpec(name="ink", trigger="inkstyle", evaluate=settings))
    with pytest.raises(EnvironmentProblem, match=r"model\.safetensors is not there"):
        networks.load_clip(str(tmp_path), "cpu", None)
