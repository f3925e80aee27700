"""Claims about `import`: a pair of Kohya TOMLs becomes a style file that trains the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brushset.errors import UsageError
from brushset.files import toml_text
from brushset.kohya.check.flags import check_pair
from brushset.kohya.import_style import ImportAsk, Imported, import_style
from brushset.kohya.render import render_dataset, render_training
from brushset.load import build_spec, load_style
from brushset.spec import StyleSpec

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "data" / "kohya_tomls"
TRAINING = """
pretrained_model_name_or_path = "model.safetensors"
output_name = "My Style V2"
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
unet_lr = 1e-4
text_encoder_lr = 5e-5
max_train_epochs = 20
optimizer_type = "AdamW"
mixed_precision = "bf16"
save_precision = "bf16"
lr_scheduler = "cosine"
lr_warmup_steps = 0.05
cache_latents = true
sdpa = true
min_snr_gamma = 5
seed = 42
"""
DATASET = """
[general]
caption_extension = ".txt"
enable_bucket = true
keep_tokens = 1
caption_dropout_rate = 0.05
[[datasets]]
resolution = 512
batch_size = 4
[[datasets.subsets]]
image_dir = "/no/such/images"
num_repeats = 3
class_tokens = "mystyle"
"""


def imported(folder: Path, training: str = TRAINING, dataset: str = DATASET, **ask: str) -> tuple[Imported, StyleSpec]:
    paths = [folder / "train.toml", folder / "data.toml"]
    for path, text in zip(paths, (training, dataset), strict=True):
        path.write_text(text, encoding="utf-8")
    made = import_style(paths[::-1], ImportAsk(**ask))
    style = folder / f"{made.name}.toml"
    style.write_text(made.text, encoding="utf-8")
    return made, load_style(style)


def pair_of(spec: StyleSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    return render_dataset(spec, spec.train.repeats or 1), render_training(spec)


def test_only_what_differs_from_our_defaults_is_stated(tmp_path: Path) -> None:
    made, spec = imported(tmp_path)
    body = made.text.split("\n", 1)[1]
    assert body == (
        'name = "my-style-v2"\ntrigger = "mystyle"\n\n[base]\nmodel = "model.safetensors"\n\n'
        '[dataset]\nimages = "/no/such/images"\nholdout = 0.0\n\n[train]\nrepeats = 3\n'
    )
    assert spec.train.repeats == 3
    assert 'trigger "mystyle": class_tokens; fix it in the style file if it is another' in made.notes
    assert any("this folder is not there" in note for note in made.notes)


def test_what_is_not_given_has_sd_scripts_default_and_not_ours(tmp_path: Path) -> None:
    _, spec = imported(
        tmp_path,
        'output_name = "x"\nlearning_rate = 1e-4\n',
        '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\n',
        trigger="t",
    )
    train = spec.train
    assert (train.network_dim, train.network_alpha, train.max_steps) == (4, 1.0, 1600)
    assert (train.unet_lr, train.text_encoder_lr, train.lr_scheduler) == (1e-4, 1e-4, "constant")
    assert (train.batch_size, train.repeats, train.enable_bucket, train.cache_latents) == (1, 1, False, False)
    assert (train.min_snr_gamma, train.caption_dropout_rate, train.mixed_precision) == (0.0, 0.0, "no")
    assert train.save_precision == "float"
    assert spec.dataset.holdout == 0.0


def test_other_options_go_to_extra_and_refused_ones_are_told(tmp_path: Path) -> None:
    more = 'ip_noise_gamma = 0.1\nnetwork_args = ["rank_dropout=0.1"]\nbase_weights = ["a"]\nlearnig_rate = 1.0\ncache_text_encoder_outputs = true\n'
    made, spec = imported(tmp_path, TRAINING + more)
    assert spec.train.extra == {"ip_noise_gamma": 0.1, "network_args": ["rank_dropout=0.1"]}
    assert spec.train.engine == "kohya"
    told = "\n".join(made.notes)
    assert "not carried over: base_weights" in told
    assert "not carried over: learnig_rate = 1.0: no option of train_network.py" in told
    assert "not carried over: cache_text_encoder_outputs = true: no option of train_network.py" in told


def test_a_combination_that_is_refused_leaves_out_the_extra_option(tmp_path: Path) -> None:
    made, spec = imported(tmp_path, TRAINING + "ip_noise_gamma_random_strength = true\nrandom_crop = true\n")
    assert spec.train.extra == {}
    assert any(
        "ip_noise_gamma_random_strength = true: " in note and "without ip_noise_gamma" in note for note in made.notes
    )
    assert any("random_crop excludes cache_latents" in note for note in made.notes)


@pytest.mark.parametrize(
    ("training", "dataset", "note", "value"),
    [
        (TRAINING.replace("text_encoder_lr = 5e-5", "text_encoder_lr = 0"), DATASET, "became train_text_encoder = false", ("train_text_encoder", False)),
        (TRAINING.replace('"AdamW"', '"Adafactor"'), DATASET, 'not carried over: optimizer_type = "Adafactor"', ("optimizer", "AdamW")),
        (TRAINING.replace("max_train_epochs = 20", "max_train_steps = 200").replace("0.05", "50"), DATASET, "became lr_warmup_ratio = 0.2500", ("lr_warmup_ratio", 0.25)),
        (TRAINING, DATASET.replace("keep_tokens = 1", "shuffle_caption = true"), "the trigger stays in front", ("keep_tokens", 1)),
        (TRAINING, DATASET.replace("enable_bucket = true", "enable_bucket = true\nmax_bucket_reso = 1000"), "became 1024", ("max_bucket_reso", 1024)),
        (TRAINING, DATASET.replace('".txt"', '".caption"'), "brushset reads .txt captions", ("epochs", 20)),
        (TRAINING, DATASET + '[[datasets.subsets]]\nimage_dir = "b"\n', "a style has one folder of images", ("repeats", 3)),
    ],
)  # fmt: skip
def test_what_is_changed_on_the_way_is_said(
    tmp_path: Path, training: str, dataset: str, note: str, value: tuple[str, object]
) -> None:
    made, spec = imported(tmp_path, training, dataset)
    assert any(note in each for each in made.notes), made.notes
    assert getattr(spec.train, value[0]) == value[1]


def test_a_rectangle_becomes_the_square_of_its_area(tmp_path: Path) -> None:
    made, spec = imported(tmp_path, dataset=DATASET.replace("512", "[768, 512]"))
    assert spec.dataset.resolution == 624
    assert "resolution 768x512 became 624, the square of the same area" in made.notes


def test_the_trigger_is_found_in_the_captions(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, text in enumerate(["inkstyle, a cat", "inkstyle, a dog", "a house"]):
        (folder / f"{index}.txt").write_text(text)
    dataset = DATASET.replace('class_tokens = "mystyle"', "").replace("/no/such/images", folder.as_posix())
    made, spec = imported(tmp_path, dataset=dataset)
    assert made.trigger == "inkstyle"
    assert spec.dataset.images == str(folder)


@pytest.mark.parametrize(
    ("training", "dataset", "ask", "match"),
    [
        (TRAINING, DATASET.replace('class_tokens = "mystyle"', ""), {}, "neither file nor caption says it"),
        (TRAINING, DATASET, {"name": "No Name"}, "fix: --name"),
        (TRAINING, TRAINING, {}, "a second training TOML; expected one training and one dataset TOML"),
        (DATASET, DATASET, {}, "a second dataset TOML"),
        (TRAINING.replace("networks.lora", "networks.lora_flux"), DATASET, {}, "brushset trains SD 1.5 only"),
        (TRAINING, "\ufeff# c\n[general]\na = “x”\n", {}, "byte-order mark"),
        (TRAINING.replace("network_dim = 32", "network_dim = 100000"), DATASET, {}, "network_dim = 100000"),
    ],
)
def test_what_is_no_pair_is_refused(
    tmp_path: Path, training: str, dataset: str, ask: dict[str, str], match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        imported(tmp_path, training, dataset, **ask)


RATES = st.floats(1e-6, 1e-2).map(lambda value: float(f"{value:.3g}"))
SHARES = st.integers(0, 99).map(lambda value: value / 100)
TRAIN = st.fixed_dictionaries(
    {},
    optional={
        "network_dim": st.integers(1, 256), "unet_lr": RATES, "text_encoder_lr": RATES, "train_text_encoder": st.booleans(),
        "batch_size": st.integers(1, 16), "gradient_accumulation_steps": st.integers(1, 4), "epochs": st.integers(1, 99),
        "max_steps": st.integers(1, 9999), "repeats": st.integers(1, 50), "lr_warmup_ratio": SHARES,
        "lr_scheduler": st.sampled_from(["cosine", "linear", "constant", "constant_with_warmup", "polynomial"]),
        "optimizer": st.sampled_from(["AdamW", "AdamW8bit", "Lion"]), "max_grad_norm": st.sampled_from([0.0, 0.5, 1.0]),
        "optimizer_args": st.sampled_from([(), ("weight_decay=0.1",)]), "seed": st.integers(0, 2**32 - 1),
        "mixed_precision": st.sampled_from(["fp16", "bf16"]), "save_precision": st.sampled_from(["float", "fp16", "bf16"]),
        "attention": st.sampled_from(["sdpa", "xformers"]), "gradient_checkpointing": st.booleans(),
        "min_snr_gamma": st.sampled_from([0.0, 1.0, 5.0]), "noise_offset": SHARES, "keep_tokens": st.integers(1, 3),
        "shuffle_caption": st.booleans(), "caption_dropout_rate": SHARES, "max_token_length": st.sampled_from([75, 150, 225]),
        "clip_skip": st.integers(1, 12), "flip_aug": st.booleans(), "enable_bucket": st.booleans(),
        "cache_latents": st.booleans(), "vae_batch_size": st.integers(1, 16), "save_every_n_epochs": st.integers(1, 9),
        "data_loader_workers": st.integers(0, 4), "min_bucket_reso": st.sampled_from([256, 320, 512]),
        "max_bucket_reso": st.sampled_from([768, 1024]), "extra": st.sampled_from([{}, {"ip_noise_gamma": 0.1}]),
    },
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(train=TRAIN, resolution=st.sampled_from([512, 640]), trigger=st.sampled_from(["ink", "wc style"]))
def test_importing_what_a_style_renders_gives_the_style(train: dict[str, Any], resolution: int, trigger: str) -> None:
    train = {**train, "network_alpha": float(train.get("network_dim", 32)) / 2}
    tables = {
        "name": "ink",
        "trigger": trigger,
        "description": "d",
        "dataset": {"resolution": resolution},
        "train": train,
    }
    spec = build_spec([("test", tables)])
    try:
        check_pair(*pair_of(spec))
    except UsageError:
        return  # such a style is refused before it is rendered
    with tempfile.TemporaryDirectory() as folder:
        dataset, training = (toml_text(part) for part in pair_of(spec))
        made, again = imported(Path(folder), training, dataset)
    assert made.notes == ()
    assert pair_of(again) == pair_of(spec)
    unseen = set()  # what such a pair does not hold
    if spec.train.max_steps is not None:
        unseen.add("epochs")
    if not spec.train.train_text_encoder:
        unseen.add("text_encoder_lr")
    if spec.train.lr_scheduler == "constant":
        unseen.add("lr_warmup_ratio")
    if not spec.train.enable_bucket:
        unseen |= {"min_bucket_reso", "max_bucket_reso"}
    if spec.train.extra or spec.train.repeats is None:
        unseen |= {"engine", "repeats"}
    for key in type(spec.train).model_fields.keys() - unseen:
        assert getattr(again.train, key) == getattr(spec.train, key), key
    assert again.model_copy(update={"train": spec.train}) == spec


@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"{CORPUS} is not there")
def test_a_real_pair_becomes_a_style(tmp_path: Path) -> None:
    pair = sorted(CORPUS.glob("Tsukreya__*.toml"))
    assert len(pair) == 2
    made = import_style(pair, ImportAsk(trigger="uwu"))
    (tmp_path / "uwu.toml").write_text(made.text, encoding="utf-8")
    spec = load_style(tmp_path / "uwu.toml")
    assert (spec.train.unet_lr, spec.train.text_encoder_lr, spec.train.optimizer) == (1e-4, 5e-5, "AdamW8bit")
    assert spec.train.extra["scale_weight_norms"] == 3.0
    assert any("lr_warmup_steps = 2348" in note for note in made.notes)
