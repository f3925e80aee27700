"""Claims about `validate`: what each key of a Kohya TOML will do, in three severities; and what real files get."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from brushset.errors import UsageError
from brushset.files import read_toml
from brushset.kohya.check.findings import Finding
from brushset.kohya.check.options import NO_EFFECT, RANGES, known_flags
from brushset.kohya.check.programs import known_programs
from brushset.kohya.check.rules import EMPTY_BITES
from brushset.kohya.check.validate import FileReport, validate_files
from brushset.kohya.source import Source
from brushset.paths import PROJECT

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "data" / "kohya_tomls"
# file → findings that are wrong, another script's, harmless; each was read against sd-scripts' code.
CORPUS_COUNTS = {
    "ButterPasser__pallas-cat-lora__kohya_config.toml": (3, 3, 2),
    "Josh-ee__sd-scripts__configs__training_config.toml": (0, 0, 0),
    "KohakuBlueleaf__LyCORIS__example_configs__training_configs__kohya__dataset_config.toml": (2, 0, 1),
    "KohakuBlueleaf__LyCORIS__example_configs__training_configs__kohya__loha_config.toml": (3, 0, 2),
    "SnowFox999__LoRa__dataset_config.toml": (7, 0, 0),
    "SpriteAI__sd-scripts__configs__dataset.toml": (1, 0, 0),
    "Tsukreya__Pspace-Lora-Trainer__config.toml": (1, 0, 0),
    "Tsukreya__Pspace-Lora-Trainer__dataset.toml": (1, 0, 0),
    "bmaltais__kohya_ss__config_example.toml": (0, 1, 0),
    "bmaltais__kohya_ss__test__config__dataset-masked_loss.toml": (3, 0, 1),
    "bmaltais__kohya_ss__test__config__dataset-multires.toml": (4, 0, 0),
    "cagliostrolab__cagliostro-webui__lora.toml": (1, 0, 0),
    "huonglarne__sd-scripts__dataset.toml": (2, 0, 0),
    "jiandanplus__DrawBook-AI-API__toml__flux.toml": (4, 15, 1),
    "jiandanplus__DrawBook-AI-API__toml__lork.toml": (3, 3, 1),
    "l1934332574-maker__Kohya-LoRA-Tool__configs__dataset_config.example.toml": (4, 0, 0),
    "ogukei__easy-lora__dataset_config.toml": (1, 0, 0),
    "tori29umai0123__CoppyLora_Train__Lineart_dataset.toml": (1, 0, 0),
}  # fmt: skip
SOUND = 'network_module = "networks.lora"\nnetwork_dim = 32\nnetwork_alpha = 16\nunet_lr = 1e-4\ntext_encoder_lr = 5e-5\nmax_train_epochs = 20\n'


def validate(folder: Path, *texts: str) -> list[FileReport]:
    paths = [folder / f"file{index}.toml" for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    return validate_files(paths)


def findings(folder: Path, text: str) -> tuple[Finding, ...]:
    return validate(folder, text)[0].findings


def counts(report: FileReport) -> tuple[int, int, int]:
    severities = [finding.severity for finding in report.findings]
    return severities.count("wrong"), severities.count("another script's"), severities.count("harmless")


@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"{CORPUS} is not there")
def test_the_reference_corpus_gets_what_was_read_against_the_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = sorted(CORPUS.glob("*.toml"))
    assert {path.name for path in paths} == CORPUS_COUNTS.keys()
    assert {path.name: counts(*validate_files([path])) for path in paths} == CORPUS_COUNTS


@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"{CORPUS} is not there")
def test_every_finding_of_the_corpus_has_a_line_or_is_of_the_file() -> None:
    for path in sorted(CORPUS.glob("*.toml")):
        for finding in validate_files([path])[0].findings:
            assert finding.line or finding.path == (), finding
            assert finding.effect, finding


@pytest.mark.parametrize(
    ("line", "severity", "told"),
    [
        (
            "learnig_rate = 1.0",
            "wrong",
            'did you mean "learning_rate"? sd-scripts ignores it without a word, and learning_rate stays at 2e-06',
        ),
        ("lr = 1.0", "wrong", 'did you mean "learning_rate"?'),
        ("rank = 8", "wrong", 'did you mean "network_dim"?'),
        ("network-dim = 8", "wrong", 'did you mean "network_dim"?'),
        ("conv_dim = 4", "wrong", 'network_args = ["conv_dim=4"]'),
        ("weight_decay = 0.1", "wrong", 'optimizer_args = ["weight_decay=0.1"]'),
        ("num_repeats = 3", "wrong", '"num_repeats" is a key of the dataset TOML'),
        ('mixed_precision = "bf61"', "wrong", "expected one of no, fp16, bf16"),
        ('learning_rate = "1e-4"', "wrong", "expected float"),
        ("optimizer_args = 'a=1'", "wrong", "expected a list"),
        ("save_every_n_epochs = 0", "wrong", "0 divides by zero at the end of the first epoch"),
        ("clip_skip = 0", "wrong", "0 takes the token embeddings"),
        ("max_timestep = 2000", "wrong", "expected 1 to 1000"),
        ("caption_dropout_rate = 5.0", "wrong", "expected 0 to 1"),
        ('network_args = ["conv_dimm=4"]', "wrong", 'did you mean "conv_dim"?'),
        ('network_args = ["dropout=0.1"]', "wrong", "fix: network_dropout"),
        ('optimizer_type = "AdamW9bit"', "wrong", 'did you mean "AdamW8bit"?'),
        ('optimizer_args = ["weight_decy=0.1"]', "wrong", 'did you mean "weight_decay"?'),
        ('optimizer_args = ["amsgrad=true"]', "wrong", "expected True, as Python writes it"),
        ('lr_scheduler = "cosin"', "wrong", "is no schedule that it can make"),
        ("fused_backward_pass = true", "wrong", "does nothing for an SD 1.5 LoRA"),
        ('caption_extention = ""', "wrong", "no caption file is found"),
        ("sdpa = true\nxformers = true", "wrong", "sdpa has no effect with xformers"),
        ("[deep.a]\nseed = 7", "wrong", "a second level of tables is kept as one value that nothing asks for"),
        ("[a]\nseed = 1\n[b]\nseed = 2", "wrong", "the later one wins: seed = 2"),
        ("cache_text_encoder_outputs = true", "another script's", "is an option of sdxl_train_network.py and 13 more"),
        ("blockwise_fused_optimizers = true", "another script's", "is an option of sd3_train.py and 3 more"),
        ("learning_rate_te1 = 1e-5", "another script's", "is an option of sdxl_train.py"),
        ('noise_offset_type = "Original"', "another script's", "is a setting of kohya_ss GUI"),
        ("dit = 'x'", "another script's", "is a setting of musubi-tuner"),
        ("lora_decompose = true", "another script's", "is a setting of OneTrainer"),
        ("micro_batch_size_per_gpu = 1", "another script's", "is a setting of diffusion-pipe"),
        ("max_token_length = 75", "harmless", "75 tokens are what leaving it out gives"),
        ("resume = false", "harmless", "taken as not given"),
        ("persistent_data_loader_workers = 0", "harmless", "taken as false"),
        ("cache_latents_to_disk = true", "harmless", "the old latents are trained on"),
        ("[a]\nseed = 1\n[b]\nseed = 1", "harmless", "with the same value"),
    ],
)
def test_each_key_has_its_severity_and_says_what_it_will_do(
    tmp_path: Path, line: str, severity: str, told: str
) -> None:
    found = findings(tmp_path, SOUND + line + "\n")
    assert len(found) == 1, [finding.message for finding in found]
    assert found[0].severity == severity
    assert told in found[0].message
    assert found[0].line is not None
    assert found[0].line > SOUND.count("\n")


def dataset(general: str = "", dataset: str = "", subset: str = 'image_dir = "{images}"') -> str:
    return f'[general]\ncaption_extension = ".txt"\n{general}\n[[datasets]]\nresolution = 512\n{dataset}\n[[datasets.subsets]]\n{subset}\n'


@pytest.fixture
def images(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "0.PNG")
    (folder / "0.txt").write_text("ink, a cat")
    return folder


def dataset_findings(folder: Path, images: Path, **parts: str) -> tuple[Finding, ...]:
    return findings(folder, dataset(**parts).replace("{images}", images.as_posix()))


def test_a_sound_dataset_has_nothing_to_say(tmp_path: Path, images: Path) -> None:
    assert dataset_findings(tmp_path, images) == ()


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"subset": 'image_dir = "{images}"\nnum_repeats = -3'}, "num_repeats = -3: expected 1 or more"),
        ({"dataset": "batch_size = 0"}, "batch_size = 0: expected 1 or more"),
        ({"subset": "num_repeats = 1"}, '"image_dir" is missing'),
        ({"subset": 'image_dir = ""'}, '"image_dir" is missing'),
        ({"subset": 'image_dir = "/no/such"'}, 'image_dir = "/no/such" is not there'),
        ({"subset": 'image_dir = "{images}/0.PNG"'}, "is a file"),
        ({"subset": 'image_dir = "{images}/.."'}, "holds no images"),
        ({"general": "alpha_mask = true"}, "it belongs to [[datasets.subsets]]"),
        ({"subset": 'image_dir = "{images}"\nbatch_size = 4'}, "it belongs to [general]"),
        ({"general": "learning_rate = 1e-4"}, "it belongs to the training TOML"),
        ({"general": "train_batch_size = 4"}, 'here it is called "batch_size"'),
        ({"general": "num_repeat = 4"}, 'did you mean "num_repeats"?'),
        ({"general": "keep_tokens = 1.0"}, "keep_tokens = 1.0: expected int"),
        ({"general": "enable_bucket = true\nmin_bucket_reso = 640"}, "resolution = 512 is below min_bucket_reso = 640"),
        ({"general": "enable_bucket = true\nbucket_reso_steps = 32"}, "is not a multiple of 64"),
        ({"general": "max_bucket_reso = 2048"}, "max_bucket_reso = 2048 has no effect without enable_bucket"),
        ({"general": "enable_bucket = true\nbucket_no_upscale = true\nmax_bucket_reso = 2048"}, "has no effect with bucket_no_upscale"),
        ({"general": 'keep_tokens_separator = "|||"'}, "has no effect without shuffle_caption"),
        ({"general": "network_multiplier = 0.5"}, "train_network.py never reads it"),
        ({"subset": 'image_dir = "{images}"\n[[datasets.subsets]]\nimage_dir = "{images}"'}, "is in this dataset already"),
        ({"general": 'resize_interpolation = "lanzcos"'}, "expected one of lanczos"),
    ],
)  # fmt: skip
def test_a_dataset_is_checked_where_sd_scripts_own_schema_is_not(
    tmp_path: Path, images: Path, parts: dict[str, str], told: str
) -> None:
    found = [finding for finding in dataset_findings(tmp_path, images, **parts) if finding.severity == "wrong"]
    assert len(found) == 1, [finding.message for finding in found]
    assert told in found[0].message


def test_resolution_minus_one_is_wrong(tmp_path: Path, images: Path) -> None:
    text = dataset().replace("512", "-1").replace("{images}", images.as_posix())
    (finding,) = findings(tmp_path, text)
    assert "resolution = -1: expected 64 or more" in finding.message


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            '[general]\nresolution = [960, 544]\n[[datasets]]\nimage_directory = "a"\n',
            "musubi-tuner, as its dataset file",
        ),
        ("[model]\ntype = 'sdxl'\n[adapter]\ntype = 'lora'\n", "diffusion-pipe"),
        (
            "[general_args.args]\nseed = 1\n[[subsets]]\nnum_repeats = 1\n",
            "LoRA_Easy_Training_Scripts (derrian-distro)",
        ),
        ('name = "ink"\ntrigger = "ink"\n', "brushset: it is a style, for orchestrate.py --style"),
        ('{"LoRA_type": "Standard", "max_resolution": "512,512"}', "kohya_ss GUI, as saved by it"),
        ('{"training_method": "LORA", "workspace_dir": "w"}', "OneTrainer"),
    ],
)
def test_files_of_other_programs_are_named(tmp_path: Path, text: str, what: str) -> None:
    (report,) = validate(tmp_path, text)
    assert report.kind == "other"
    assert what in report.what
    (finding,) = report.findings
    assert finding.severity == "another script's"


def test_a_file_for_another_script_is_not_measured_by_sd15s_rules(tmp_path: Path) -> None:
    text = (
        SOUND.replace("networks.lora", "networks.lora_flux") + "fused_backward_pass = true\nv_parameterization = true\n"
    )
    (report,) = validate(tmp_path, text)
    assert counts(report) == (0, 1, 0)
    assert "flux_train_network.py" in report.findings[0].message
    assert counts(*validate(tmp_path, text.replace("lora_flux", "lora"))) == (2, 0, 0)


def test_a_pair_is_held_against_one_another(tmp_path: Path, images: Path) -> None:
    training = SOUND + (
        "train_batch_size = 8\nresolution = '768,768'\ntrain_data_dir = 'x'\nvalidate_every_n_epochs = 1\n"
        "cache_latents = true\nmasked_loss = true\ncaption_dropout_rate = 0.1\n"
    )
    data = dataset(general="batch_size = 3\ncolor_aug = true\ncaption_dropout_rate = 0.1").replace(
        "{images}", images.as_posix()
    )
    first, second = validate(tmp_path, training, data)
    told = "\n".join(finding.message for finding in first.findings)
    assert "train_batch_size = 8 has no effect; " in told
    assert "file1.toml says batch_size = 3" in told
    assert 'resolution = "768,768" has no effect' in told
    assert 'train_data_dir = "x" has no effect' in told
    assert "validate_every_n_epochs = 1 has no effect without validation_split" in told
    assert "masked_loss = true has no effect" in told
    assert "caption_dropout_rate" not in told
    assert [finding.message for finding in second.findings if "color_aug excludes cache_latents" in finding.message]
    turned = validate(tmp_path, data, training)
    assert [len(report.findings) for report in turned] == [len(second.findings), len(first.findings)]


def test_a_training_toml_without_a_dataset_is_checked_for_its_folder(tmp_path: Path, images: Path) -> None:
    text = SOUND + f"train_data_dir = '{tmp_path.as_posix()}'\nresolution = '512,512'\ncaption_extension = '.txt'\n"
    (finding,) = findings(tmp_path, text)
    assert "holds no folder that begins with a number of repeats" in finding.message
    images.rename(tmp_path / "3_ink")
    assert findings(tmp_path, text) == ()


def test_a_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UsageError, match="no such file"):
        validate_files([Path("/no/such.toml")])


def run_validate(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "orchestrate.py", "validate", *words]
    return subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_the_command_exits_2_where_something_is_silently_wrong(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(SOUND + "epoch = 1\nmax_token_length = 75\n")
    bad.write_text(SOUND + "learnig_rate = 1.0\n")
    told = run_validate(str(good))
    assert told.returncode == 0, told.stderr
    assert "1 another script's, 1 harmless" in told.stdout
    told = run_validate(str(good), str(bad))
    assert told.returncode == 2
    assert 'unknown key "learnig_rate"' in told.stdout
    assert "2 files, 1 wrong" in told.stdout
    lines = [json.loads(line) for line in run_validate("--json", str(bad)).stdout.splitlines()]
    assert [line["event"] for line in lines] == ["file", "finding", "summary"]
    assert (lines[1]["line"], lines[1]["severity"], lines[2]["exit_code"]) == (7, "wrong", 2)


def test_the_tables_name_options_that_exist() -> None:
    options = known_flags()["options"]
    assert NO_EFFECT.keys() <= options.keys()
    assert EMPTY_BITES.keys() <= options.keys()
    assert RANGES.keys() <= options.keys() | {"num_repeats", "batch_size"}
    assert len(known_programs()) == 6
    for program in known_programs().values():
        assert not set(program["keys"]) & options.keys()
        assert len(program["keys"]) > 10


ASK_SCHEMA = r"""
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()):
    from library.config_util import ConfigSanitizer
    sanitizer = ConfigSanitizer(True, True, True, True)
    said = []
    for tables in json.loads(sys.argv[2]):
        try:
            sanitizer.sanitize_user_config(tables)
            said.append("")
        except Exception as error:
            said.append(str(error))
print(json.dumps(said))
"""


def ask_schema(sd_scripts: Source, cases: list[dict[str, Any]]) -> list[str]:
    argv = [sys.executable, "-W", "ignore", "-c", ASK_SCHEMA, str(sd_scripts.folder), json.dumps(cases)]
    done = subprocess.run(argv, cwd=sd_scripts.folder, capture_output=True, text=True, check=True)
    said: list[str] = json.loads(done.stdout)
    return said


@pytest.mark.vendor
@pytest.mark.slow
@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"{CORPUS} is not there")
def test_our_schema_findings_on_the_corpus_are_those_of_sd_scripts(sd_scripts: Source) -> None:
    paths = [path for path in sorted(CORPUS.glob("*.toml")) if validate_files([path])[0].kind == "dataset"]
    assert len(paths) == 10
    said = ask_schema(sd_scripts, [read_toml(path) for path in paths])
    for path, complaint in zip(paths, said, strict=True):
        ours = [
            item
            for item in validate_files([path])[0].findings
            if item.effect == "sd-scripts stops with MultipleInvalid"
        ]
        assert bool(ours) == bool(complaint), (path.name, complaint)


@pytest.mark.vendor
@pytest.mark.slow
def test_sd_scripts_own_schema_passes_what_ours_does_not(sd_scripts: Source) -> None:
    subset = {"image_dir": "/no/such"}
    cases: list[dict[str, Any]] = [
        {"datasets": [{"subsets": [{**subset, "num_repeats": -3}]}]},
        {"datasets": [{"resolution": -1, "subsets": [subset]}]},
        {"datasets": [{"subsets": [subset]}]},
        {"datasets": [{"subsets": [{**subset, "num_repeat": 1}]}]},
    ]
    assert [bool(complaint) for complaint in ask_schema(sd_scripts, cases)] == [False, False, False, True]
