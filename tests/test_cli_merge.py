"""merge and conflicts, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lora_files import in_diffusers, locon_state, lora_state, save, write_lora

import orchestrate
from brushset.bases.configs import SD15
from brushset.cli.guard import guarded
from brushset.lora.adapter import AdapterFile, read_adapter
from brushset.lora.metadata import model_hash, read_metadata

PRIVATE = {"ss_tag_frequency": '{"my holiday": {"secret": 2}}', "ss_dataset_dirs": '{"my holiday": {}}'}
ANIME = {"modelspec.trigger_phrase": "anistyle", "ss_sd_model_name": "v1-5.safetensors", **PRIVATE}
WATERCOLOR = {"modelspec.trigger_phrase": "wcstyle", "ss_sd_model_name": "v1-5.safetensors"}


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    write_lora(tmp_path / "anime.safetensors", seed=1, metadata=ANIME)
    write_lora(tmp_path / "watercolor.safetensors", dim=3, alpha=6.0, seed=2, text_encoder=False, metadata=WATERCOLOR)
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    code = guarded(orchestrate.app, [str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def both(loras: Path) -> tuple[str, str]:
    return f"{loras / 'anime.safetensors'}:0.6", f"{loras / 'watercolor.safetensors'}:0.4"


def expected(parts: list[tuple[float, AdapterFile]]) -> dict[str, Any]:
    """Σ w ΔW of every module, dense, in float64."""
    total: dict[str, Any] = {}
    for weight, adapter in parts:
        for name, factor in adapter.factors.items():
            update = factor.alpha / factor.rank * factor.up.double().flatten(1) @ factor.down.double().flatten(1)
            total[name] = total.get(name, 0) + weight * update
    return total


def worst_error(path: Path, meant: dict[str, Any]) -> float:
    written = read_adapter(path).factors
    assert written.keys() == meant.keys()
    errors = []
    for name, factor in written.items():
        update = factor.alpha / factor.rank * factor.up.double().flatten(1) @ factor.down.double().flatten(1)
        errors.append(((update - meant[name]).norm() / meant[name].norm()).item())
    return max(errors)


@pytest.mark.parametrize("method", ["concat", "weighted"])
@pytest.mark.parametrize(("dtype", "allowed"), [("float", 1e-6), ("fp16", 5e-4), ("bf16", 4e-3)])
def test_the_file_is_the_weighted_sum(
    method: str, dtype: str, allowed: float, loras: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path("mix.safetensors")
    code, said, _ = answer(capsys, "merge", *both(loras), "--method", method, "--dtype", dtype, "--out", out)
    assert code == 0, said
    anime, watercolor = (read_adapter(loras / f"{name}.safetensors") for name in ("anime", "watercolor"))
    assert worst_error(out, expected([(0.6, anime), (0.4, watercolor)])) <= allowed
    written = read_adapter(out)
    assert len(written.factors) == 264
    assert written.layouts == ("kohya",)
    assert {name.rank for name in written.factors.values()} == {4, 7}
    assert "watercolor: no text encoder" in said


def test_the_file_says_where_it_comes_from_and_gives_nothing_away(
    loras: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(capsys, "merge", *both(loras))[0] == 0
    told = read_metadata(Path("anime+watercolor-concat.safetensors"))
    assert told["modelspec.merged_from"] == "anime, watercolor"
    assert told["modelspec.title"] == "anime 0.6 + watercolor 0.4"
    assert told["modelspec.trigger_phrase"] == "anistyle, wcstyle"
    assert (told["ss_network_dim"], told["ss_base_model_version"]) == ("Dynamic", "sd_v1")
    assert told["ss_sd_model_name"] == "v1-5.safetensors"
    provenance = json.loads(told["brushset.merge"])
    assert provenance["method"] == "concat"
    assert provenance["sources"][1] == {
        "name": "watercolor",
        "weight": "0.4",
        "file": "watercolor.safetensors",
        "model_hash": model_hash(loras / "watercolor.safetensors"),
        "trigger": "wcstyle",
    }
    assert "secret" not in str(told)
    assert "holiday" not in str(told)
    assert str(loras) not in str(told)


def test_the_same_mix_gives_the_same_bytes(loras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        argv = ("merge", *both(loras), "--method", "dare", "--rank", 3, "--seed", 5, "--out", f"{name}.safetensors")
        assert answer(capsys, *argv)[0] == 0
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()
    assert json.loads(read_metadata(Path("one.safetensors"))["brushset.merge"])["seed"] == 5


@pytest.mark.parametrize("method", ["svd", "ties", "dare"])
def test_a_lower_rank_says_what_is_left_of_each(method: str, loras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(capsys, "merge", *both(loras), "--method", method, "--rank", 2, "--json")
    figures = json.loads(out.splitlines()[-1])
    assert code == 0
    assert read_adapter(Path(figures["result"])).ranks == [2]
    assert 0 < figures["energy"] < 1
    assert [style["name"] for style in figures["styles"]] == ["anime", "watercolor"]
    assert all(0 < style["kept"] < 1 for style in figures["styles"])
    assert 0 < figures["error"] < 2


def test_what_is_kept_of_a_style_is_its_projection(loras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    _, out, _ = answer(capsys, "merge", *both(loras), "--method", "svd", "--rank", 2, "--json")
    figures = json.loads(out.splitlines()[-1])
    written = read_adapter(Path(figures["result"])).factors
    anime = read_adapter(loras / "anime.safetensors")
    meant = expected([(0.6, anime), (0.4, read_adapter(loras / "watercolor.safetensors"))])
    held = plain = product = size = error = asked = 0.0
    for name, factor in anime.factors.items():
        update, mixed = factor.delta().double(), written[name].delta().double()
        left, _, right = torch.linalg.svd(mixed)
        held += (left[:, :2].T @ update @ right[:2].T).square().sum().item()
        plain += update.square().sum().item()
        product += (update * mixed).sum().item()
        size += mixed.square().sum().item()
        error += (mixed - meant[name]).square().sum().item()
        asked += meant[name].square().sum().item()
    assert figures["styles"][0]["kept"] == pytest.approx(held / plain, rel=1e-5)
    assert figures["styles"][0]["cosine"] == pytest.approx(product / (plain * size) ** 0.5, rel=1e-5)
    assert figures["error"] == pytest.approx((error / asked) ** 0.5, rel=1e-5)
    assert figures["energy"] == pytest.approx(1 - error / asked, rel=1e-4)


def test_an_exact_file_keeps_all_even_where_directions_are_shared(
    loras: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = lora_state(dim=1, seed=3), lora_state(dim=1, seed=4)
    second.update({key: each for key, each in first.items() if "lora_down" in key})
    sources = [f"{save(state, loras / f'{seed}.safetensors')}:0.5" for seed, state in enumerate((first, second))]
    for method in ("concat", "weighted"):
        code, out, _ = answer(capsys, "merge", *sources, "--method", method, "--json")
        figures = json.loads(out.splitlines()[-1])
        assert (code, figures["rank"]) == (0, 2 if method == "concat" else 1)
        assert [style["kept"] for style in figures["styles"]] == pytest.approx([1, 1])


def test_parts_of_the_model_have_weights_of_their_own(loras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = f"{loras / 'anime.safetensors'}:0.6,text=0,mid=0.1"
    code, out, _ = answer(capsys, "merge", first, both(loras)[1], "--out", "mix.safetensors")
    assert (code, "0.6,text=0,mid=0.1" in out) == (0, True)
    written = read_adapter(Path("mix.safetensors")).factors
    assert not any(name.startswith("lora_te") for name in written)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    anime, watercolor = (read_adapter(loras / f"{each}.safetensors").factors[name] for each in ("anime", "watercolor"))
    meant = 0.1 * anime.delta() + 0.4 * watercolor.delta()
    assert (written[name].delta() - meant).norm() <= 1e-6 * meant.norm()


def test_normalised_weights_sum_to_one(loras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [f"{loras / name}.safetensors" for name in ("anime", "watercolor")]
    code, out, _ = answer(capsys, "merge", f"{sources[0]}:3", f"{sources[1]}:1", "--normalize")
    assert code == 0
    assert "weights sum to 1" in out
    assert [each["weight"] for each in json.loads(read_metadata(next(Path().glob("*.safetensors")))["brushset.merge"])["sources"]] == ["0.75", "0.25"]  # fmt: skip


def test_convolutions_and_other_forms_are_merged_too(loras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locon = save(locon_state(seed=3), loras / "locon.safetensors")
    folder = loras / "sketch"
    save(in_diffusers(lora_state(seed=4)), folder / "pytorch_lora_weights.safetensors")
    code, out, _ = answer(capsys, "merge", f"{locon}:0.5", f"{folder}:0.5", "--out", "mix.safetensors")
    assert code == 0
    assert "sketch: states no alpha; taken as the rank" in out
    meant = expected([(0.5, read_adapter(locon)), (0.5, read_adapter(folder))])
    assert worst_error(Path("mix.safetensors"), meant) <= 1e-6


def test_nothing_is_written_over(loras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mix.safetensors").write_bytes(b"mine")
    code, _, err = answer(capsys, "merge", *both(loras), "--out", "mix.safetensors")
    assert (code, Path("mix.safetensors").read_bytes()) == (2, b"mine")
    assert "is there already; fix: --replace" in err
    assert answer(capsys, "merge", *both(loras), "--out", "mix.safetensors", "--replace")[0] == 0
    before = (loras / "anime.safetensors").read_bytes()
    code, _, err = answer(capsys, "merge", *both(loras), "--out", loras / "anime.safetensors", "--replace")
    assert (code, "is the file to read" in err) == (2, True)
    assert (loras / "anime.safetensors").read_bytes() == before
    assert not list(Path().glob(".tmp*"))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["{a}:0.6"], "1 adapter; two or more are merged"),
        (["{a}:0", "{w}:1"], "anime: weight 0 everywhere adds nothing; fix: leave it out"),
        (["{a}:0.6", "{a}:0.4"], "holds the very tensors of"),
        (["{a}:0.6", "{copy}:0.4"], "copy: holds the very tensors of anime"),
        (["{a}:half", "{w}"], "weight 'half': a number is expected"),
        (["{a}:0.6", "missing.safetensors:0.4"], "missing.safetensors: no such file"),
        (["{a}:0.6", "sketchy:0.4"], "sketchy: neither a file nor a style with a run"),
        (["{a}", "{w}", "--method", "linear"], "there are: concat, weighted, svd, ties, dare"),
        (["{a}", "{w}", "--method", "composite"], "that is a way of making images: inference --method composite"),
        (
            ["{a}:0.6@0-0.5", "{w}"],
            "one weight for all steps is expected here; weights that change are for `inference`",
        ),
        (["{a}", "{w}", "--rank", "8"], "--rank goes with svd, ties and dare"),
        (["{a}", "{w}", "--method", "svd", "--rank", "0"], "--rank 0: must be 1 to 1024"),
        (["{a}", "{w}", "--method", "svd", "--density", "0.5"], "--density goes with ties and dare"),
        (["{a}", "{w}", "--method", "ties", "--density", "0"], "--density 0: a share above 0"),
        (["{a}", "{w}", "--dtype", "int8"], "--dtype int8: must be one of float, fp16, bf16"),
        (["{a}", "{wide}"], "models of different widths"),
        (["{a}:-1", "{w}:1", "--normalize"], "must sum to more than 0"),
        (["{a}:0.6", "{sdxl}:0.4"], "a LoRA of SDXL"),
    ],
)
def test_what_does_not_go_together_is_told(
    argv: list[str], told: str, loras: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        "a": loras / "anime.safetensors",
        "w": loras / "watercolor.safetensors",
        "copy": loras / "copy.safetensors",
    }
    names |= {"wide": loras / "wide.safetensors", "sdxl": loras / "sdxl.safetensors"}
    if "{copy}:0.4" in argv:
        write_lora(names["copy"], seed=1)
    if "{wide}" in argv:
        write_lora(names["wide"], architecture=SD15, dim=1, text_encoder=False)
    if "{sdxl}:0.4" in argv:
        save({f"lora_te2_x.{key}": each for key, each in _one_module().items()}, names["sdxl"])
    code, _, err = answer(capsys, "merge", *(word.format(**names) for word in argv))
    assert code == 2
    assert told in err
    assert not list(Path().glob("*.safetensors"))


def _one_module() -> dict[str, Any]:
    import torch

    return {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2), "alpha": torch.tensor(1.0)}


def test_all_that_is_wrong_is_told_at_once(loras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = answer(capsys, "merge", "missing.safetensors", f"{loras / 'anime.safetensors'}:x", "other.bin:0.4")
    assert code == 2
    assert [line.split(":")[1].strip() for line in err.splitlines()] == ["missing.safetensors", str(loras / "anime.safetensors"), "other.bin"]  # fmt: skip


def test_conflicts_are_written_and_told(loras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    sources = [loras / f"{name}.safetensors" for name in ("anime", "watercolor")]
    code, out, _ = answer(capsys, "conflicts", *sources, "--out", "found")
    assert code == 0
    assert "anime – watercolor" in out
    assert "orchestrate.py merge" in out
    content = json.loads(Path("found/conflicts.json").read_text())
    assert content["pairs"][0]["blocks"]["text 3"]["norms"][1] == 0
    assert content["pairs"][0]["blocks"]["text 3"]["ratio"] is None
    weights = content["weights"]
    assert weights["anime"]["all"] + weights["watercolor"]["all"] == pytest.approx(1)
    with Image.open("found/conflicts.png") as picture:
        assert picture.width > 1000
    code, out, _ = answer(capsys, "conflicts", *sources, "--runs-dir", "r", "--json")
    assert json.loads(out)["folder"].endswith("r/_conflicts/anime+watercolor")


def test_effects_are_compared_on_the_base_model(loras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [f"{loras / 'anime.safetensors'}:0.5", loras / "watercolor.safetensors"]
    base = ("--functional", "--base-model", "random:tiny", "--size", "64")
    code, out, _ = answer(capsys, "conflicts", *sources, *base, "--out", "found")
    assert code == 0
    assert "anime 0.5 – watercolor 1" in out
    assert "! the base model is made of random numbers" in out
    found = json.loads(Path("found/conflicts.json").read_text())["functional"]
    assert (found["base"], found["base_random"]) == ("random:tiny", True)
    (pair,) = found["pairs"]
    assert pair["points"][0]["prompt"] == "anistyle, wcstyle, a portrait of a girl"
    assert len(pair["points"]) == 10
    assert pair["additivity"] == pytest.approx(sum(point["additivity"] for point in pair["points"]) / 10)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["{a}"], "two or more"),
        (["{a}:0.5", "{w}"], "compared without weights"),
        (["{a}", "{w}", "--functional", "--size", "100"], "--size 100: must be a multiple of 8"),
    ],
)
def test_conflicts_that_cannot_be_compared_are_refused(
    argv: list[str], told: str, loras: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"a": loras / "anime.safetensors", "w": loras / "watercolor.safetensors"}
    code, _, err = answer(capsys, "conflicts", *(word.format(**names) for word in argv))
    assert (code, told in err) == (2, True)
