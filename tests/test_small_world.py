"""LoRAs that really learn, on a base that has really learnt (tests/small_world): the whole claim of a trainer, in numbers.

Losses are mean squared errors of the predicted noise on pictures never trained on, less the base's, by code that no trainer
shares; every margin is half of what was measured over three seeds (bench/learning.py, docs/LOG.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file

from brushset.bases.load import load_components
from brushset.generation.additivity import Additivity, AdditivityProbe, ProbeSettings
from brushset.generator import MultiLoRAGenerator
from brushset.kohya.source import Source
from brushset.log import silent
from brushset.lora.adapter import read_adapter
from brushset.lora.conflict import find_conflicts
from brushset.lora.merge.weights import Weight
from brushset.records import BaseFile
from small_world.draw import PX
from small_world.measure import Ruler, amount_of, draw_mixes, prompts
from small_world.styles import TRIGGERS, make_gated, make_style
from small_world.training import GATED, make_job, train_kohya, train_native

if TYPE_CHECKING:
    from PIL.Image import Image

pytestmark = pytest.mark.slow

PACKED = ("warm", "cold", "framed")
MARGIN = {"warm": 0.0125, "cold": 0.024, "framed": 0.07}
"""By which the held-out loss is lower than the base's, at least: 0.026 to 0.028, 0.048 to 0.049, 0.140 to 0.144."""
GATED_MARGIN = 0.08
"""Between what the right trigger takes off dusk's loss, 0.088 to 0.089, and what wrong ones do, 0.068 to 0.073."""
OVERTRAINED: dict[str, Any] = {
    "batch_size": 6, "network_dim": 16, "network_alpha": 16.0, "lr_scheduler": "constant", "lr_warmup_ratio": 0.0,
    "epochs": 120, "save_every_n_epochs": 20, "seed": 1,
}  # fmt: skip
WRONG = ("vexmoor", "ilbrant")
ALIKE = 0.005
"""Of two trainings of one style that differ in the order of sums, or in the trainer: losses apart."""
CAPTIONS = prompts(8)


@dataclass(frozen=True)
class Trained:
    """Three styles in one pass, each one's file and its ruler."""

    files: dict[str, Path]
    rulers: dict[str, Ruler]

    def gain(self, style: str, file: Path | None = None) -> float:
        """What the adapter, or another file, takes off the base's held-out loss with its trigger."""
        ruler = self.rulers[style]
        return ruler.loss(None) - ruler.loss(file or self.files[style], TRIGGERS[style])


@pytest.fixture(scope="module")
def trained(small_base: BaseFile, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("packed")
    jobs = [make_job(root / style, small_base, style, make_style(style, 24, 1)) for style in PACKED]
    files = dict(zip(PACKED, train_native(*jobs), strict=True))
    return Trained(files, {style: Ruler.of(small_base, make_style(style, 12, 1000)) for style in PACKED})


@pytest.fixture(scope="module")
def gated(small_base: BaseFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dusk behind its trigger beside plain pictures behind other words."""
    pictures = make_gated("dusk", 24, 1)
    (file,) = train_native(make_job(tmp_path_factory.mktemp("gated") / "dusk", small_base, "dusk", pictures, **GATED))
    return file


@pytest.fixture(scope="module")
def drawn(small_base: BaseFile, trained: Trained, gated: Path) -> dict[str, list[Image]]:
    """Eight captions, one seed, in every mix that is asked about."""
    generator = MultiLoRAGenerator(small_base, device="cpu", exact=False)
    for style, file in {**trained.files, "dusk": gated}.items():
        generator.load_lora(file, style)
    mixes = {
        "base": (),
        **{f"{style} {weight}": ((style, weight),) for style in ("warm", "cold") for weight in (0.5, 1.0)},
        **{f"{one} + {other}": ((one, 1.0), (other, 1.0)) for one, other in itertools.combinations(PACKED, 2)},
        "dusk 1.0": (("dusk", 1.0),),
    }
    wanted = {name: (said([style for style, _ in mix]), mix) for name, mix in mixes.items()}
    return draw_mixes(
        generator, {**wanted, "dusk 1.0, wrong": ([f"{WRONG[0]}, {each}" for each in CAPTIONS], mixes["dusk 1.0"])}
    )


def said(styles: Sequence[str]) -> list[str]:
    """The captions with the styles' triggers in front."""
    return ["".join(f"{TRIGGERS[style]}, " for style in styles) + caption for caption in CAPTIONS]


def warmth(images: Sequence[Image]) -> float:
    """Mean of red less blue, inside any frame."""
    import numpy as np

    pixels = np.stack([np.asarray(each, np.float64)[12 : PX - 12, 12 : PX - 12] for each in images])
    return float((pixels[..., 0] - pixels[..., 2]).mean())


def test_a_lora_lowers_the_held_out_loss_of_its_style_by_the_margin(trained: Trained) -> None:
    for style in PACKED:
        assert trained.gain(style) > MARGIN[style], style


def test_the_right_trigger_lowers_it_by_the_margin_and_wrong_ones_do_not(small_base: BaseFile, gated: Path) -> None:
    """A wrong trigger lowers it too, by less: at most noise levels the style is seen in the noisy picture itself, and the
    adapter need not be told. What it draws from nothing but noise tells the triggers apart altogether (the next test). A
    set without plain pictures behind other words teaches no trigger at all: there wrong ones lower the loss as much.
    """
    ruler = Ruler.of(small_base, make_style("dusk", 12, 1000))
    bare = ruler.loss(None)
    right, wrong = bare - ruler.loss(gated, TRIGGERS["dusk"]), [bare - ruler.loss(gated, word) for word in WRONG]
    assert right > GATED_MARGIN
    assert max(wrong) < GATED_MARGIN


def test_only_the_right_trigger_draws_the_style(drawn: dict[str, list[Image]]) -> None:
    assert amount_of("dusk", drawn["base"]) < 0.1
    assert amount_of("dusk", drawn["dusk 1.0"]) > 0.3
    assert amount_of("dusk", drawn["dusk 1.0, wrong"]) < 0.1


@pytest.mark.parametrize("style", ["warm", "framed"])
def test_a_style_trained_in_a_pack_is_what_it_is_alone(
    style: str, small_base: BaseFile, trained: Trained, tmp_path: Path
) -> None:
    (alone,) = train_native(make_job(tmp_path / style, small_base, style, make_style(style, 24, 1)))
    assert trained.gain(style, alone) == pytest.approx(trained.gain(style), abs=ALIKE)
    packed, own = load_file(trained.files[style]), load_file(alone)
    assert packed.keys() == own.keys()
    apart = sum(float((packed[key] - own[key]).square().sum()) for key in own) ** 0.5
    assert apart < 0.02 * sum(float(each.square().sum()) for each in own.values()) ** 0.5


@pytest.mark.vendor
def test_the_real_sd_scripts_learn_the_same(
    sd_scripts: Source, small_base: BaseFile, trained: Trained, tmp_path: Path
) -> None:
    file = train_kohya(make_job(tmp_path / "framed", small_base, "framed", make_style("framed", 24, 1)))
    assert trained.gain("framed", file) > MARGIN["framed"]
    assert trained.gain("framed", file) == pytest.approx(trained.gain("framed"), rel=0.15)


def test_more_weight_is_more_style_in_what_is_drawn(drawn: dict[str, list[Image]]) -> None:
    base = warmth(drawn["base"])
    warm = [base, *(warmth(drawn[f"warm {weight}"]) for weight in (0.5, 1.0))]
    cold = [base, *(warmth(drawn[f"cold {weight}"]) for weight in (0.5, 1.0))]
    assert all(later - earlier > 7 for earlier, later in itertools.pairwise(warm)), warm
    assert all(earlier - later > 7 for earlier, later in itertools.pairwise(cold)), cold


def test_the_planted_conflict_is_seen_in_the_predictions_and_in_no_other_pair(
    small_base: BaseFile, trained: Trained
) -> None:
    """Warm and cold undo each other. The adapters' weights know nothing of it: their cosines are all about 0."""
    adapters = {style: read_adapter(file) for style, file in trained.files.items()}
    probe = AdditivityProbe(load_components(small_base), adapters, "small world", silent)
    found: dict[tuple[str, str], Additivity] = {}
    for pair in itertools.combinations(PACKED, 2):
        settings = ProbeSettings([", ".join([*(TRIGGERS[each] for each in pair), text]) for text in CAPTIONS[:2]], PX)
        found[pair] = probe.compare(*((style, Weight(1.0)) for style in pair), settings)
    planted = found.pop(("warm", "cold"))
    assert planted.cosine < -0.15
    assert planted.cosine < min(each.cosine for each in found.values()) - 0.1
    assert sum(planted.kept) / 2 < min(sum(each.kept) / 2 for each in found.values()) - 0.06
    weights = find_conflicts({style: each.factors for style, each in adapters.items()})
    assert max(abs(pair.whole.cosine) for pair in weights.pairs) < 0.1


def test_a_mix_of_the_planted_pair_loses_what_harmless_mixes_keep(drawn: dict[str, list[Image]]) -> None:
    base = warmth(drawn["base"])

    def kept(style: str, mix: str) -> float:
        return (warmth(drawn[mix]) - base) / (warmth(drawn[f"{style} 1.0"]) - base)

    planted = [kept(style, "warm + cold") for style in ("warm", "cold")]
    harmless = [kept(style, f"{style} + framed") for style in ("warm", "cold")]
    assert min(planted) < 0.1
    assert max(planted) < min(harmless) - 0.24


def test_too_long_on_six_pictures_the_gap_grows_and_the_held_out_loss_turns_up(
    small_base: BaseFile, tmp_path: Path
) -> None:
    """Over three seeds the gap grew by 0.011 to 0.012, and the held-out loss ended 0.0025 to 0.0036 above its lowest."""
    pictures, trigger = make_style("dusk", 6, 1), TRIGGERS["dusk"]
    job = make_job(tmp_path / "dusk", small_base, "dusk", pictures, **OVERTRAINED)
    (last,) = train_native(job)
    files = [job.output_dir / f"dusk-{epoch:06d}.safetensors" for epoch in (20, 40)] + [last]
    held_out, own = Ruler.of(small_base, make_style("dusk", 12, 1000)), Ruler.of(small_base, pictures)
    losses = [held_out.loss(file, trigger) for file in files]
    gaps = [loss - own.loss(file, trigger) for loss, file in zip(losses, files, strict=True)]
    assert gaps[-1] > gaps[0] + 0.005
    assert losses[-1] > min(losses) + 0.001
    assert losses[-1] < held_out.loss(None)
