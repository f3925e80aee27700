"""The metrics against independent implementations in NumPy and SciPy; what they are worth; where they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from brushset.errors import EnvironmentProblem, UsageError
from brushset.protocols import GridImages
from brushset.spec import StyleSpec
from eval import METRICS
from eval.clip_score import measure_clip_score
from eval.features import ClipEncoder, InceptionFeatures, load_clip, load_inception
from eval.fid import frechet_distance, measure_fid
from eval.metric import NotMeasured
from eval.score import FLOOR_CELL, load_extractors, score_cell, score_grids
from eval.style_similarity import mean_cosine, measure_style_similarity


def noise_images(count: int, seed: int, size: tuple[int, int] = (48, 40)) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(count)]


def frechet_by_scipy(real: np.ndarray, generated: np.ndarray) -> float:
    root = scipy.linalg.sqrtm(np.cov(real, rowvar=False) @ np.cov(generated, rowvar=False))
    shift = real.mean(0) - generated.mean(0)
    return float(shift @ shift + np.trace(np.cov(real, rowvar=False) + np.cov(generated, rowvar=False) - 2 * root.real))


@pytest.fixture(scope="module")
def clip() -> ClipEncoder:
    return load_clip("random", device="cpu")


@pytest.fixture(scope="module")
def inception() -> InceptionFeatures:
    return load_inception("random", device="cpu")


def rebatched(encoder: ClipEncoder | InceptionFeatures, batch_size: int) -> ClipEncoder | InceptionFeatures:
    """The same network with another batch size and nothing remembered."""
    return type(encoder)(**{**vars(encoder), "batch_size": batch_size, "_known": {}})


def test_frechet_distance_equals_scipys_matrix_root():
    random = np.random.default_rng(0)
    real, generated = random.normal(size=(90, 12)), random.normal(0.3, 1.7, size=(70, 12))
    found = frechet_distance(torch.from_numpy(real), torch.from_numpy(generated))
    assert found == pytest.approx(frechet_by_scipy(real, generated), rel=1e-9)


def test_frechet_distance_of_fewer_images_than_features_is_that_of_the_space_they_span():
    random = np.random.default_rng(2)
    low_real, low_generated = random.normal(size=(30, 5)), random.normal(0.5, 2, size=(20, 5))
    turn = np.linalg.qr(random.normal(size=(64, 64)))[0][:5]
    found = frechet_distance(torch.from_numpy(low_real @ turn), torch.from_numpy(low_generated @ turn))
    assert found == pytest.approx(frechet_by_scipy(low_real, low_generated), rel=1e-6)


def test_frechet_distance_of_two_known_gaussians_is_the_formula():
    random = np.random.default_rng(1)
    real = random.normal(size=(200_000, 2))
    found = frechet_distance(torch.from_numpy(real), torch.from_numpy(real * 2 + [3.0, 0.0]))
    # ‖μ‖² = 9, and (2 - 1)² for each of two axes of unit variance.
    assert found == pytest.approx(9 + 2, abs=0.05)


def test_fid_of_a_set_with_itself_is_zero_and_grows_with_difference(inception: InceptionFeatures):
    images = noise_images(40, 0)
    dark = [image.point(lambda value: value // 4) for image in images]
    darker = [image.point(lambda value: value // 16) for image in images]
    distances = [measure_fid(GridImages(other, [], images), inception).value for other in (images, dark, darker)]
    assert distances[0] == pytest.approx(0, abs=1e-6)
    assert distances[0] < distances[1] < distances[2]


def test_fid_equals_scipy_on_the_extractors_own_features(inception: InceptionFeatures):
    images, references = noise_images(40, 1), [i.rotate(30) for i in noise_images(50, 2)]
    expected = frechet_by_scipy(inception.features(references).numpy(), inception.features(images).numpy())
    result = measure_fid(GridImages(images, [], references), inception)
    assert result.value == pytest.approx(expected, rel=1e-6)
    assert result.n == 40
    assert "50 references" in result.note
    assert "biased upwards" in result.note


def test_fid_of_one_image_is_not_measured(inception: InceptionFeatures):
    with pytest.raises(NotMeasured, match="1 images against 5 references"):
        measure_fid(GridImages(noise_images(1, 0), [], noise_images(5, 1)), inception)


def test_clip_score_equals_our_own_cosine(clip: ClipEncoder):
    images, prompts = noise_images(7, 3), [f"a prompt about thing {index}" for index in range(7)]
    cosines = (clip.encode_images(images) * clip.encode_texts(prompts)).sum(axis=1)
    result = measure_clip_score(GridImages(images, prompts, []), clip)
    assert result.value == pytest.approx(max(100 * float(cosines.mean()), 0), abs=1e-3)
    assert result.n == 7


def test_clip_score_pairs_each_image_with_its_own_prompt(clip: ClipEncoder):
    images, prompts = noise_images(4, 4), ["one", "two words", "now three words", "and even four words"]
    forward = clip.encode_images(images) @ clip.encode_texts(prompts).T
    assert np.ptp(forward) > 1e-3
    straight = measure_clip_score(GridImages(images, prompts, []), clip).value
    crossed = measure_clip_score(GridImages(images, prompts[::-1], []), clip).value
    assert straight - crossed == pytest.approx(100 * (np.trace(forward) - np.trace(forward[:, ::-1])) / 4, abs=1e-3)


def test_a_prompt_longer_than_clips_context_is_cut_not_refused(clip: ClipEncoder):
    long = " ".join(f"word{index}" for index in range(300))
    assert np.isfinite(measure_clip_score(GridImages(noise_images(1, 0), [long], []), clip).value)


def test_no_images_is_not_measured(clip: ClipEncoder):
    with pytest.raises(NotMeasured):
        measure_clip_score(GridImages([], [], []), clip)
    with pytest.raises(NotMeasured):
        measure_style_similarity(GridImages([], [], noise_images(1, 0)), clip)


def test_mean_cosine_of_vectors_of_known_geometry():
    axes = np.eye(3, dtype=np.float32)
    assert mean_cosine(axes[:1], axes[:1]) == pytest.approx(1)
    assert mean_cosine(axes[:1], axes[1:]) == pytest.approx(0)
    assert mean_cosine(axes[:1], -axes[:1]) == pytest.approx(-1)
    # The mean of cosines, not the cosine of means, which would be 1.
    assert mean_cosine(axes, axes) == pytest.approx(1 / 3)


def test_style_similarity_is_the_mean_over_all_pairs(clip: ClipEncoder):
    images, references = noise_images(3, 5), noise_images(4, 6)
    pairs = [a @ b for a in clip.encode_images(images) for b in clip.encode_images(references)]
    result = measure_style_similarity(GridImages(images, [], references), clip)
    assert result.value == pytest.approx(float(np.mean(pairs)), abs=1e-6)
    assert result.n == 3


def test_style_similarity_is_held_against_images_that_were_not_trained_on(clip: ClipEncoder):
    images, references, held_out = noise_images(3, 5), noise_images(4, 6), [i.rotate(90) for i in noise_images(5, 7)]
    result = measure_style_similarity(GridImages(images, [], references, held_out), clip)
    assert result.value == pytest.approx(measure_style_similarity(GridImages(images, [], held_out), clip).value)
    assert result.value != pytest.approx(measure_style_similarity(GridImages(images, [], references), clip).value)
    assert result.note == "5 references, held out, never trained on"


def test_too_few_held_out_images_are_not_used_and_the_note_says_which_were(clip: ClipEncoder):
    images, references = noise_images(3, 5), noise_images(4, 6)
    result = measure_style_similarity(GridImages(images, [], references, noise_images(3, 7)), clip)
    assert result.value == measure_style_similarity(GridImages(images, [], references), clip).value
    assert result.note == "4 references, trained on"


def test_fid_keeps_the_images_trained_on(inception: InceptionFeatures):
    images, references = noise_images(5, 1), noise_images(6, 2)
    with_held_out = measure_fid(GridImages(images, [], references, noise_images(9, 3)), inception)
    assert with_held_out.value == measure_fid(GridImages(images, [], references), inception).value
    assert with_held_out.note.startswith("6 references, trained on")


def test_embeddings_are_unit_vectors_of_float32(clip: ClipEncoder):
    for found in (clip.encode_images(noise_images(3, 0)), clip.encode_texts(["a", "b c"])):
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", list(METRICS))
def test_batch_size_changes_no_metric(name: str, clip: ClipEncoder, inception: InceptionFeatures):
    grid = GridImages(noise_images(9, 7), [f"prompt {index}" for index in range(9)], noise_images(11, 8))
    values = []
    for batch_size in (1, 4, 64):
        extractors = {"clip": rebatched(clip, batch_size), "inception": rebatched(inception, batch_size)}
        values.append(score_cell(name, "a cell", grid, extractors).value)
    np.testing.assert_allclose(values, values[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(METRICS))
def test_metrics_are_deterministic_from_one_made_up_encoder_to_the_next(name: str):
    grid = GridImages(noise_images(6, 9), ["a prompt"] * 6, noise_images(6, 10))
    spec = StyleSpec(name="cartoon", trigger="cartoonstyle", smoke=True)
    torch.manual_seed(1)
    first = score_cell(name, "a cell", grid, load_extractors(spec))
    torch.manual_seed(2)
    assert score_cell(name, "a cell", grid, load_extractors(spec)) == first


def test_making_up_an_encoder_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_clip("random", device="cpu")
    load_inception("random", device="cpu")
    assert torch.equal(torch.rand(1), expected)


def test_scores_by_made_up_encoders_are_labelled(clip: ClipEncoder, inception: InceptionFeatures):
    grid = GridImages(noise_images(4, 0), ["a prompt"] * 4, noise_images(4, 1))
    grids = [("base", grid), (FLOOR_CELL, GridImages(grid.images, [], grid.references))]
    events: list[str] = []
    emit = lambda event, **_: events.append(event)  # noqa: E731
    scores = score_grids(grids, {"clip": clip, "inception": inception}, emit, total=2)
    assert {(score.metric, score.cell) for score in scores} == {
        ("clip_score", "base"), ("style_similarity", "base"), ("fid", "base"),
        ("style_similarity", FLOOR_CELL), ("fid", FLOOR_CELL),
    }  # fmt: skip
    assert not any(score.meaningful for score in scores)
    assert all(score.n == 4 and score.value is not None for score in scores)
    assert all("made-up" in score.extractor for score in scores)
    assert set(events) == {"progress"}


def test_what_cannot_be_measured_is_none_with_its_reason_and_never_zero(
    clip: ClipEncoder, inception: InceptionFeatures
):
    grid = GridImages(noise_images(1, 0), ["a prompt"], noise_images(4, 1))
    score = score_cell("fid", "base", grid, {"clip": clip, "inception": inception})
    assert score.value is None
    assert score.n == 1
    assert "not measured: 1 images against 4 references" in score.note


def test_a_nan_is_not_a_score(inception: InceptionFeatures, monkeypatch: pytest.MonkeyPatch, clip: ClipEncoder):
    monkeypatch.setattr("eval.style_similarity.mean_cosine", lambda *_: float("nan"))
    grid = GridImages(noise_images(2, 0), ["a prompt"] * 2, noise_images(4, 1))
    score = score_cell("style_similarity", "base", grid, {"clip": clip, "inception": inception})
    assert (score.value, score.note) == (None, "not measured: it came out as nan")


def test_a_model_that_cannot_be_fetched_gives_a_made_up_one_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    for found in (
        load_clip("openai/clip-vit-large-patch14", device="cpu"),
        load_inception("inception-v3-compat", device="cpu"),
    ):
        assert not found.meaningful
        assert "not on this machine" in found.note


def test_wrong_names_are_usage_errors_and_a_damaged_folder_is_one_of_environment(tmp_path: Path):
    with pytest.raises(UsageError, match=r"inception = .*nowhere\.pth"):
        load_inception(str(tmp_path / "nowhere.pth"), device="cpu")
    with pytest.raises(UsageError, match="neither a folder nor an HF id"):
        load_clip("no such name!", device="cpu")
    with pytest.raises(EnvironmentProblem, match=r"model\.safetensors"):
        load_clip(str(tmp_path), device="cpu")


def test_a_clip_folder_is_loaded_as_a_real_model(tmp_path: Path, clip: ClipEncoder):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    config = clip.model.config.to_dict()
    config["text_config"] |= {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 1}
    CLIPModel(CLIPConfig.from_dict(config)).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (tmp_path / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    loaded = load_clip(str(tmp_path), device="cpu")
    assert loaded.meaningful
    assert "weights" in loaded.id
    grid = GridImages(noise_images(2, 0), ["a cat", "a dog " * 100], noise_images(2, 1))
    cosines = (loaded.encode_images(grid.images) * loaded.encode_texts(grid.prompts)).sum(axis=1)
    assert measure_clip_score(grid, loaded).value == pytest.approx(max(100 * cosines.mean(), 0), abs=1e-3)


def test_inceptions_own_weights_file_is_loaded_as_a_real_model(tmp_path: Path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    network = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr("torch.nn.Module.load_state_dict", lambda *_: None)
        network.__init__("inception-v3-compat", ["2048"])
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    loaded = load_inception(str(path), device="cpu")
    assert loaded.meaningful
    assert loaded.features(noise_images(2, 0)).shape == (2, 2048)
