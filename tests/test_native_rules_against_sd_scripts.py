"""Native's rules held against sd-scripts' own functions, one by one: buckets, pixels, captions, rates, noise, losses."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from brushset.buckets import BucketRules, Placement, plan_buckets
from brushset.kohya.source import Source
from brushset.native.captions import When, vary_caption
from brushset.native.dataset import IMAGE_SUFFIXES
from brushset.native.latents import load_pixels
from brushset.native.noise import draw_noise
from brushset.native.norms import limit_norms
from brushset.native.objective import (
    Corruption,
    Loss,
    corrupt,
    huber_thresholds,
    noise_losses,
    sample_weights,
    signal_shares,
)
from brushset.native.optim import plan_rates
from brushset.native.settings import DatasetKeys, TrainingKeys

CHILD = Path(__file__).parent / "tiny_sd_scripts" / "rules.py"
DATA = Path(__file__).parents[2] / "shared" / "data"
SETS = ("anime_mikabul", "cartoon_gophers", "painted_mikabul_control", "photos_dreambooth_control", "watercolor_potter")
DRAWS = 4000
NO_SUCH = {"v_parameterization": False, "scale_v_pred_loss_like_noise_pred": False, "v_pred_like_loss": None,
           "adaptive_noise_scale": None}  # fmt: skip
"""Arguments of sd-scripts that native refuses."""

pytestmark = pytest.mark.vendor
Answers = tuple[dict[str, Any], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, sd_scripts: Source) -> Answers:
    """sd-scripts' answers to all questions of this file, from one child process: importing it takes longest."""
    folder = tmp_path_factory.mktemp("questions")
    questions = {**ask_captions(), **ask_rates(), **ask_noise(), **ask_losses()}
    questions |= {"norms": {"ask": "norms", "given": "network.safetensors", "limit": 1.0}}
    questions |= {**ask_buckets(), **ask_pixels()} if DATA.is_dir() else {}
    (folder / "questions.json").write_text(json.dumps(questions))
    save_file(given_tensors(), folder / "questions.safetensors")
    save_file(given_network(), folder / "network.safetensors")
    environment = {**os.environ, "SD_SCRIPTS_DIR": str(sd_scripts.folder), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, str(CHILD), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text()), load_file(folder / "answers.safetensors")


@pytest.fixture
def data() -> None:
    """Skips where the real images are not there."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there")


def given_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"predicted": (1000, 4, 3, 3), "noise": (1000, 4, 3, 3), "latents": (3, 4, 20, 28)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def given_network() -> dict[str, torch.Tensor]:
    """Three layers: of no norm to speak of, of a small one, and of one that is limited."""
    generator, given = torch.Generator().manual_seed(4), {}
    for number, size in enumerate((0.01, 0.3, 2.0)):
        given[f"l{number}.lora_down.weight"] = size * torch.randn((4, 12), generator=generator)
        given[f"l{number}.lora_up.weight"] = size * torch.randn((9, 4), generator=generator)
        given[f"l{number}.alpha"] = torch.tensor(2.0)
    return given


def recipe(**changes: Any) -> TrainingKeys:
    keys = {"seed": 1, "output_name": "x", "network_module": "networks.lora"}
    return TrainingKeys.model_validate({**keys, **changes})


def keys(**changes: Any) -> DatasetKeys:
    return DatasetKeys.model_validate({"image_dir": "images", "resolution": 512, **changes})


def sizes_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every image of a set, `oddities` too, by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            with Image.open(path) as image:
                found[str(path)] = image.size
    return found


RULES = {
    "usual": BucketRules(512, 256, 1024, 64, no_upscale=False, enable=True),
    "no upscale": BucketRules(512, 256, 1024, 64, no_upscale=True, enable=True),
    "coarse": BucketRules(512, 384, 768, 128, no_upscale=False, enable=True),
}


def ask_buckets() -> dict[str, Any]:
    questions = {}
    for kind, rules in RULES.items():
        manager = [rules.no_upscale, (rules.resolution,) * 2, rules.min_reso, rules.max_reso, rules.step]
        for name in SETS:
            sizes = list(sizes_of(DATA / name).values())
            questions[f"{kind} {name}"] = {"ask": "buckets", "manager": manager, "sizes": sizes}
    return questions


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("kind", RULES)
def test_every_image_of_the_real_sets_goes_to_the_same_bucket(answers: Answers, kind: str) -> None:
    seen = 0
    for name in SETS:
        sizes = sizes_of(DATA / name)
        assert len(sizes) > 40
        plan = plan_buckets(sizes, RULES[kind])
        for path, (bucket, resized) in zip(sizes, answers[0][f"{kind} {name}"], strict=True):
            assert plan.placements[path].bucket == tuple(bucket), path
            assert plan.placements[path].resized == tuple(resized), path
            seen += 1
    assert seen > 520


def some_images() -> dict[str, Placement]:
    """One image of each set, and how it is fitted."""
    chosen = dict(next(iter(sizes_of(DATA / name).items())) for name in SETS)
    return plan_buckets(chosen, RULES["usual"]).placements


def ask_pixels() -> dict[str, Any]:
    return {path: {"ask": "pixels", "path": path, "bucket": place.bucket, "resized": place.resized}
            for path, place in some_images().items()}  # fmt: skip


@pytest.mark.usefixtures("data")
def test_what_the_vae_is_given_is_equal(answers: Answers) -> None:
    """The mirror image is these pixels turned round, in either engine."""
    places = some_images()
    assert len(places) == len(SETS)
    for path, place in places.items():
        assert torch.equal(load_pixels(Path(path), place), answers[1][f"{path}/"]), path


CAPTIONS: dict[str, tuple[str, dict[str, Any], When]] = {
    "as it is": ("style, a,b , c", {}, When()),
    "first line": ("style, a\nsecond", {}, When()),
    "shuffled": ("style, a, b, c", {"shuffle_caption": True, "keep_tokens": 1}, When()),
    "shuffled whole": ("a,, b", {"shuffle_caption": True}, When()),
    "separator": ("style, x ||| a, b ||| end, last", {"shuffle_caption": True, "keep_tokens_separator": "|||"}, When()),
    "one separator": ("style,, x ||| a, , b", {"shuffle_caption": True, "keep_tokens_separator": "|||"}, When()),
    "other comma": ("style; a; b", {"shuffle_caption": True, "caption_separator": ";"}, When()),
    "secondary": ("style, a;;;b, c", {"shuffle_caption": True, "secondary_separator": ";;;"}, When()),
    "tags dropped": ("style, a, b", {"caption_tag_dropout_rate": 0.3, "keep_tokens": 1}, When()),
    "dropped": ("style, a", {"caption_dropout_rate": 0.25, "caption_prefix": "first", "caption_suffix": "end"}, When()),
    "dropped epoch": ("style, a", {"caption_dropout_every_n_epochs": 2}, When(epoch=4)),
    "kept epoch": ("style, a", {"caption_dropout_every_n_epochs": 2}, When(epoch=3)),
    "wildcards": ("a {red|blue} cat\nx {{a|b}} {c}", {"enable_wildcard": True}, When()),
    "warming up": ("style, a, b, c, d", {"token_warmup_step": 10.0, "keep_tokens": 1}, When(step=5, steps=20)),
    "warming share": ("style, a, b, c, d", {"token_warmup_step": 0.5, "token_warmup_min": 0}, When(step=4, steps=20)),
    "warmed up": ("style, a, b", {"token_warmup_step": 4.0, "shuffle_caption": True}, When(step=4, steps=20)),
    "all at once": ("a, b|| {c|d}, e", {"shuffle_caption": True, "caption_tag_dropout_rate": 0.2, "keep_tokens_separator":
                    "||", "enable_wildcard": True, "caption_dropout_rate": 0.1}, When()),
}  # fmt: skip


def ask_captions() -> dict[str, Any]:
    fields = set(DatasetKeys.model_fields) - {"image_dir", "resolution"}
    return {
        f"caption {name}": {
            "ask": "captions",
            "caption": caption,
            "draws": DRAWS,
            "subset": keys(**changes).model_dump(include=fields),
            "dataset": {"current_epoch": when.epoch, "current_step": when.step, "max_train_steps": when.steps},
        }
        for name, (caption, changes, when) in CAPTIONS.items()
    }


def test_captions_come_out_as_often_by_the_same_rules(answers: Answers) -> None:
    for name, (caption, changes, when) in CAPTIONS.items():
        rng = random.Random(2)
        ours = Counter(vary_caption(caption, keys(**changes), rng, when) for _ in range(DRAWS))
        theirs = Counter(answers[0][f"caption {name}"])
        assert set(ours) == set(theirs), name
        for made in theirs:  # of two draws of 4000, a difference of five standard deviations
            share = theirs[made] / DRAWS
            assert abs(ours[made] - theirs[made]) <= 5 * (2 * DRAWS * share * (1 - share)) ** 0.5 + 1e-9, (name, made)


SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {}, "linear": {}, "constant": {}, "constant_with_warmup": {}, "inverse_sqrt": {},
    "cosine_with_restarts": {"lr_scheduler_num_cycles": 3}, "polynomial": {"lr_scheduler_power": 2.0},
    "cosine_with_min_lr": {"lr_scheduler_min_lr_ratio": 0.1, "lr_scheduler_num_cycles": 2},
    "warmup_stable_decay": {"lr_decay_steps": 0.3, "lr_scheduler_min_lr_ratio": 0.05},
}  # fmt: skip
STEPS = 59


def all_schedules() -> dict[str, TrainingKeys]:
    """Every schedule with warm-ups as a number and as a share; neither engine lets "constant" warm up."""
    return {
        f"{name} {warmup}": recipe(
            lr_scheduler=name, lr_warmup_steps=warmup, learning_rate=3e-4, network_train_unet_only=True, **changes
        )
        for name, changes in SCHEDULES.items()
        for warmup in ((0,) if name == "constant" else (0, 7, 0.1, 0.25))
    }


def ask_rates() -> dict[str, Any]:
    names = {name for name in TrainingKeys.model_fields if name.startswith("lr_")}
    fixed = {"max_train_steps": STEPS, "lr_scheduler_type": "", "optimizer_type": "AdamW"}
    return {name: {"ask": "rates", "rate": 3e-4, "args": training.model_dump(include=names) | fixed}
            for name, training in all_schedules().items()}  # fmt: skip


def test_rates_are_the_same_at_every_step(answers: Answers) -> None:
    schedules = all_schedules()
    assert len(schedules) == 33
    for name, training in schedules.items():
        assert [rates["unet"] for rates in plan_rates(training, STEPS)] == answers[0][name], name


NOISES: dict[str, dict[str, Any]] = {
    "plain": {},
    "offset": {"noise_offset": 0.1},
    "random offset": {"noise_offset": 0.1, "noise_offset_random_strength": True},
    "pyramid": {"multires_noise_iterations": 6, "multires_noise_discount": 0.3},
    "perturbed": {"ip_noise_gamma": 0.1},
    "randomly perturbed": {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True, "zero_terminal_snr": True},
    "some timesteps": {"min_timestep": 100, "max_timestep": 300},
    "all at once": {"noise_offset": 0.05, "multires_noise_iterations": 4, "ip_noise_gamma": 0.1, "max_timestep": 500},
}


def ask_noise() -> dict[str, Any]:
    names = {key for changes in NOISES.values() for key in changes} | {"min_timestep", "multires_noise_discount"}
    return {
        f"noise {name}": {"ask": "noise", "seed": 5, "args": NO_SUCH | recipe(**changes).model_dump(include=names)}
        for name, changes in NOISES.items()
    }


def test_noise_and_noisy_latents_are_the_same_from_the_same_draws(answers: Answers) -> None:
    latents, made = given_tensors()["latents"], answers[1]
    for name, changes in NOISES.items():
        drawn = draw_noise(latents.shape, torch.Generator().manual_seed(5), recipe(**changes))
        shares = signal_shares(ends_at_zero=changes.get("zero_terminal_snr", False))
        added = drawn.noise if drawn.added is None else drawn.added
        assert torch.equal(drawn.timesteps, made[f"noise {name}/timesteps"]), name
        assert torch.allclose(drawn.noise, made[f"noise {name}/noise"], atol=1e-6), name
        noisy = corrupt(latents, Corruption(added, drawn.timesteps), shares)
        assert torch.allclose(noisy, made[f"noise {name}/noisy"], atol=1e-5), name


LOSSES: dict[str, dict[str, Any]] = {
    "squared": {}, "absolute": {"loss_type": "l1"}, "min snr": {"min_snr_gamma": 5.0}, "min snr 1": {"min_snr_gamma": 1.0},
    "debiased": {"debiased_estimation_loss": True}, "both": {"debiased_estimation_loss": True, "min_snr_gamma": 8.0},
    "terminal": {"zero_terminal_snr": True, "min_snr_gamma": 5.0},
    **{f"{kind} {schedule}": {"loss_type": kind, "huber_schedule": schedule, "huber_c": 0.2, "huber_scale": 0.7}
       for kind in ("huber", "smooth_l1") for schedule in ("constant", "exponential", "snr")},
}  # fmt: skip


def ask_losses() -> dict[str, Any]:
    names = {key for changes in LOSSES.values() for key in changes} | {"loss_type", "min_snr_gamma"}
    return {
        f"loss {name}": {"ask": "losses", "args": NO_SUCH | recipe(**changes).model_dump(include=names)}
        for name, changes in LOSSES.items()
    }


def test_losses_and_their_weights_are_the_same_at_every_timestep(answers: Answers) -> None:
    given = given_tensors()
    predicted, noise = given["predicted"], given["noise"]
    for name, changes in LOSSES.items():
        training = recipe(**changes)
        loss = Loss(training.loss_type, huber_thresholds(training))
        ours = noise_losses(predicted, noise, sample_weights(training), styles=1000, loss=loss)
        assert torch.allclose(ours, answers[1][f"loss {name}/"], rtol=2e-5), name


def test_norms_are_limited_alike(answers: Answers) -> None:
    given, found, layers = given_network(), answers[1], {}
    for name in ("l0", "l1", "l2"):
        down, up = (given[f"{name}.lora_{key}.weight"].clone()[None] for key in ("down", "up"))
        layers[name] = SimpleNamespace(down_master=down, up_master=up, scales=[0.5])
    limit_norms(SimpleNamespace(layers=layers, row=0), 1.0)  # type: ignore[arg-type]
    for name, layer in layers.items():
        assert torch.allclose(layer.down_master[0], found[f"norms/{name}.lora_down.weight"], rtol=1e-4)
        assert torch.allclose(layer.up_master[0], found[f"norms/{name}.lora_up.weight"], rtol=1e-4)
    assert not torch.equal(layers["l2"].up_master[0], given["l2.lora_up.weight"])
    assert torch.equal(layers["l0"].up_master[0], given["l0.lora_up.weight"])
