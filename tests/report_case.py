"""A run as evaluation leaves it, with made-up numbers that behave like real ones: style rises with epoch and weight, the
prompt suffers, and the last epochs remember. For pages to show; nothing here was measured.
"""

from __future__ import annotations

import collections
import html.parser
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from brushset.records import (
    Candidate,
    Cell,
    Choice,
    EpochLoss,
    Estimate,
    EvalReport,
    Matrix,
    MixCandidate,
    MixChoice,
    NearPair,
    PlaceMeasure,
    PlaceValues,
    Score,
)

STYLE, OTHER = "cartoon", "anime"
EPOCHS, WEIGHTS = (2, 4, 6, 8, 10, 12), (0.6, 0.8, 1.0)
PROMPTS = ("a cat <b>on</b> a windowsill", "a landscape with a lake", "a street & a tower", 'a "portrait" of a girl')
SEEDS = (1, 2)
BOUNDS = {"min_fidelity": -1.5, "min_diversity": 0.8, "max_memorisation": 0.03}
BEST_EPOCH, BEST_WEIGHT = 8, 0.8
CSD, CLIP, DINO = "CSD ViT-L/14", "CLIP ViT-L/14", "DINOv2 ViT-L/14"


def estimate(value: float, half: float) -> Estimate:
    return Estimate(value=round(value, 4), low=round(value - half, 4), high=round(value + half, 4))


def retention_at(epoch: int, weight: float) -> float:
    return 1.05 * (1 - math.exp(-epoch * weight / 4.2))


def fidelity_at(epoch: int, weight: float) -> float:
    return 0.1 - 0.05 * (epoch * weight) ** 1.55


def memorisation_at(epoch: int, weight: float) -> float:
    return 0.002 * math.exp(epoch * weight / 4.5)


def diversity_at(epoch: int, weight: float) -> float:
    return 1.02 - 0.018 * epoch * weight


def make_candidate(epoch: int, weight: float, samples: Sequence[str] = ()) -> Candidate:
    late = 6 <= epoch <= 10 and weight >= 0.8
    width = 0.5 if late else 1.0
    fidelity = estimate(fidelity_at(epoch, weight), 0.6 * width)
    memorisation = estimate(memorisation_at(epoch, weight), 0.006 * width)
    diversity = estimate(diversity_at(epoch, weight), 0.04 * width)
    broken = [
        ("fidelity", fidelity.low < -1.5, f"CLIP score may fall by {-fidelity.low:.2f}, more than 1.5"),
        ("diversity", diversity.value < 0.8, f"diversity {diversity.value:.2f} of the base's, below 0.8"),
        ("memorisation", memorisation.high > 0.03, f"memorisation gap may be {memorisation.high:.3f}, above 0.03"),
    ]
    reasons = tuple(text for _, fails, text in broken if fails)
    breaks = tuple(name for name, fails, _ in broken if fails)
    return Candidate(
        weights=f"weights/{STYLE}-{epoch:06d}.safetensors", epoch=epoch, weight=weight, round=2 if late else 1,
        images=100 if late else 32, retention=estimate(retention_at(epoch, weight), 0.09 * width), fidelity=fidelity,
        diversity=diversity, memorisation=memorisation, feasible=not reasons, reasons=reasons, breaks=breaks,
        on_front=late and not reasons, samples=tuple(samples),
    )  # fmt: skip


def make_choice(*, meaningful: bool = True, feasible: bool = True) -> Choice:
    """Epochs × weights with what is chosen of them; not `feasible`: with bounds that none keeps."""
    folders = {(epoch, weight): f"choice/images/{epoch}_{weight:g}" for epoch, weight in product(EPOCHS, WEIGHTS)}
    candidates = [
        make_candidate(epoch, weight, [f"{folder}/{index}.png" for index in range(len(PROMPTS))])
        for (epoch, weight), folder in folders.items()
    ]
    if not feasible:
        worse = {"feasible": False, "reasons": ("CLIP score may fall by 9.00, more than 1.5",), "breaks": ("fidelity",)}
        candidates = [candidate.model_copy(update=worse) for candidate in candidates]
    chosen = next(each for each in candidates if (each.epoch, each.weight) == (BEST_EPOCH, BEST_WEIGHT))
    words = chosen.model_copy(
        update={
            "weights": "", "epoch": 0, "weight": 0.0, "retention": estimate(0.21, 0.08), "fidelity": estimate(-0.2, 0.3),
            "diversity": estimate(0.97, 0.02), "memorisation": estimate(0.001, 0.004), "samples": (), "on_front": False,
        }
    )  # fmt: skip
    return Choice(
        weights=chosen.weights, weights_sha256="12" * 32, epoch=BEST_EPOCH, weight=BEST_WEIGHT, decided_by="retention",
        feasible=feasible, meaningful=meaningful, encoder=CSD, measured_by={"retention": CSD, "fidelity": CLIP}, candidates=tuple(candidates), bounds=BOUNDS,
        reason="epoch 10 keeps no more of the style than the intervals allow to tell, so the earlier one is taken",
        reported=chosen.model_copy(update={"retention": estimate(0.76, 0.07), "images": 100}), words=words,
        chosen_on=PROMPTS[:2], reported_on=PROMPTS[2:], shown_prompts=PROMPTS, seeds=SEEDS, images=1016, seconds=1312.0,
        losses=tuple(
            EpochLoss(epoch=e, held_out=0.118 - 0.01 * e / 6 + 0.0004 * max(0, e - 6) ** 2, trained=0.117 - 0.0035 * e)
            for e in EPOCHS
        ),
        base_samples=tuple(f"choice/images/base/{index}.png" for index in range(len(PROMPTS))),
        notes=("3 of 18 were measured on all prompts.",),
    )  # fmt: skip


def make_cells() -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
    """Those shown side by side, and those only measured."""
    own, pair = f"{STYLE} {BEST_WEIGHT:g}", f"{STYLE} 0.5 + {OTHER} 0.5"
    shown = [
        ("base", {}, "base"), ("base + style words", {}, "words"), (own, {STYLE: BEST_WEIGHT}, "alone"),
        (pair, {STYLE: 0.5, OTHER: 0.5}, "mix"),
    ]  # fmt: skip
    more = [
        (f"{STYLE} 0.4", {STYLE: 0.4}, "alone"), (f"{own}, no trigger", {STYLE: BEST_WEIGHT}, "no trigger"),
        (f"{own}, trigger of {OTHER}", {STYLE: BEST_WEIGHT}, "wrong trigger"),
        (f"{STYLE} 0.3 + {OTHER} 0.7", {STYLE: 0.3, OTHER: 0.7}, "mix"), (f"{OTHER} 1", {OTHER: 1.0}, "alone"),
    ]  # fmt: skip
    return tuple(_cells(shown, 0)), tuple(_cells(more, len(shown)))


def _cells(rows: Sequence[tuple[str, Mapping[str, float], str]], first: int) -> Iterator[Cell]:
    for number, (name, mix, role) in enumerate(rows, start=first):
        images = tuple(f"eval/images/{number}/{index}_{seed}.png" for index in range(len(PROMPTS)) for seed in SEEDS)
        yield Cell.model_validate({"name": name, "mix": mix, "images": images, "role": role})


# Metric → extractor, which way is better, and value by cell role (or cell name), with the half-width of its interval.
_SCORES: tuple[tuple[str, str, bool | None, float, Mapping[str, float]], ...] = (
    ("clip_score", CLIP, True, 0.9, {"base": 26.1, "words": 25.9, "alone": 25.4, "mix": 25.2}),
    ("clip_score_difference", CLIP, True, 0.5, {"words": -0.2, "alone": -0.72, "mix": -0.9}),
    ("style_similarity_csd", CSD, True, 0.02, {"base": 0.31, "words": 0.38, "alone": 0.57, "mix": 0.47, "floor": 0.66}),
    ("retention_csd", CSD, True, 0.07, {"words": 0.21, "alone": 0.76, "mix": 0.46}),
    ("style_accuracy_csd", CSD, True, 0.06, {"alone": 0.91}),
    ("style_auc_csd", CSD, True, 0.02, {"run": 0.97}),
    ("trigger_leakage_csd", CSD, None, 0.05, {"no trigger": 0.93}),
    ("mix_retention_csd", CSD, True, 0.08, {"mix": 0.58}),
    ("fid", "Inception v3", False, 6.0, {"base": 221.0, "words": 190.0, "alone": 158.0, "floor": 131.0}),
    ("kd_dinov2_difference", DINO, False, 0.6, {"alone": -1.9}),
    ("memorisation_gap", DINO, False, 0.005, {"base": 0.001, "alone": 0.009}),
    ("copies", DINO, False, 0.01, {"base": 0.0, "alone": 0.01}),
    ("lpips_ratio", "LPIPS AlexNet", True, 0.03, {"alone": 0.9, "mix": 0.92}),
)


def make_rich_evaluation(*, meaningful: bool = True, mixes: bool = True) -> EvalReport:
    shown, more = make_cells()
    if not mixes:
        shown, more = (tuple(cell for cell in cells if OTHER not in cell.mix) for cells in (shown, more))
    scores = [
        Score(
            metric=metric, cell=cell, value=value, n=8, higher_is_better=up, extractor=by, meaningful=meaningful,
            low=value - half, high=value + half, interval="bootstrap over 50 prompts", weights_sha256="ab" * 32,
            note="24 references, held out, never trained on" if by == CSD else "",
        )
        for metric, by, up, half, values in _SCORES
        for cell, value in _by_cell(values, (*shown, *more))
    ]  # fmt: skip
    scores.append(
        Score(
            metric="kid", cell="base", value=None, n=0, higher_is_better=False, extractor="Inception v3",
            meaningful=False, note="not measured: weights are not there; fix: fetch-models",
        )
    )  # fmt: skip
    return EvalReport(
        cells=shown, more_cells=more, scores=tuple(scores), grid="eval/grid.png", prompts=PROMPTS, seeds=SEEDS,
        meaningful=meaningful, notes=("references are <held out>",), matrices=tuple(make_matrices(mixes=mixes, meaningful=meaningful)),
        nearest=tuple(
            NearPair(
                cell=f"{STYLE} {BEST_WEIGHT:g}", image=shown[2].images[index], trained=f"images/{index:02d}.png",
                cosine=0.81 - 0.05 * index, bits=5 + 9 * index, copied=index == 0, extractor=DINO, meaningful=meaningful,
            )
            for index in range(4)
        ),
        mix_choices=(make_mix_choice(meaningful=meaningful),) if mixes else (),
    )  # fmt: skip


def _by_cell(values: Mapping[str, float], cells: Sequence[Cell]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if key in {"floor", "run"}:
            yield ("references against one another" if key == "floor" else "the run"), value
        for cell in cells:
            if cell.role == key:
                weaker = 0.0 if cell.role != "alone" else 0.2 * (BEST_WEIGHT - cell.mix.get(STYLE, BEST_WEIGHT))
                yield cell.name, value * (1 - weaker)


def make_matrices(*, mixes: bool = True, meaningful: bool = True) -> Iterator[Matrix]:
    about = {"extractor": CSD, "meaningful": meaningful}
    classes = (STYLE, OTHER, "base")
    shares = ((0.91, 0.05, 0.04), (0.1, 0.8, 0.1), (0.02, 0.03, 0.95))
    yield Matrix(
        name="confusion_csd", rows=(f"{STYLE} 0.8", f"{OTHER} 1", "base"), columns=classes, **about,
        entries=tuple(tuple(Estimate(value=share) for share in row) for row in shares),
    )  # fmt: skip
    if not mixes:
        return
    rows = (f"{STYLE} 0.5 + {OTHER} 0.5", f"{STYLE} 0.3 + {OTHER} 0.7")
    for name, entries in (
        ("mix_retention_csd", ((0.61, 0.58), (0.33, 0.84))),
        ("mix_interference_csd", ((-0.04, -0.06), (-0.02, None))),
    ):
        yield Matrix(
            name=name, rows=rows, columns=(STYLE, OTHER), **about,
            entries=tuple(
                tuple(Estimate(value=None, note="no cell") if each is None else estimate(each, 0.05) for each in row)
                for row in entries
            ),
        )  # fmt: skip


def make_mix_choice(*, meaningful: bool = True) -> MixChoice:
    def candidate(own: float, least: float, *, feasible: bool = True) -> MixCandidate:
        return MixCandidate(
            cell=f"{STYLE} {own:g} + {OTHER} {1 - own:g}", mix={STYLE: own, OTHER: round(1 - own, 2)}, method="weighted",
            retention={STYLE: estimate(0.61, 0.06), OTHER: estimate(least, 0.07)}, least=estimate(least, 0.07),
            balance=estimate(0.95, 0.05), fidelity=estimate(-0.9, 0.5), feasible=feasible,
            reasons=() if feasible else ("CLIP score may fall by 2.4, more than 2",),
        )  # fmt: skip

    return MixChoice(
        styles=(STYLE, OTHER), chosen=candidate(0.5, 0.58), decided_by="retention", meaningful=meaningful,
        reason="keeps most of the style of which least is left", candidates=(candidate(0.5, 0.58), candidate(0.3, 0.33, feasible=False)),
    )  # fmt: skip


def make_values(evaluation: EvalReport, *, shift: float = 0.0, seed: int = 0) -> PlaceValues:
    """Numbers of each place around the cells' scores; `shift` moves those of the adapter's own cells."""
    random = np.random.default_rng(seed)
    places = list(product(evaluation.prompts, evaluation.seeds))
    prompt_level = np.repeat(np.random.default_rng(7).normal(0, 1, len(evaluation.prompts)), len(evaluation.seeds))
    cells = (*evaluation.cells, *evaluation.more_cells)

    def measure(name: str, score: str, spread: float, level: float | None = None) -> dict[str, PlaceMeasure]:
        known = {each.cell: each.value for each in evaluation.scores if each.metric == score}
        rows = {
            cell.name: tuple(
                float(value)
                for value in (known.get(cell.name) or 0.3)
                + spread * (prompt_level + 0.3 * random.normal(0, 1, len(places)))
                + (shift if cell.role == "alone" else 0)
            )
            for cell in cells
        }
        return {name: PlaceMeasure(extractor=score, meaningful=evaluation.meaningful, level=level, cells=rows)}

    return PlaceValues(
        prompts=tuple(prompt for prompt, _ in places), seeds=tuple(seed for _, seed in places), references="r" * 64,
        measures={
            **measure("clip_score", "clip_score", 2.0),
            **measure("style_similarity_csd", "style_similarity_csd", 0.03, 0.66),
            **measure("memorisation_gap", "memorisation_gap", 0.01),
            **measure("lpips", "lpips_ratio", 0.05),
        },
    )  # fmt: skip


def paint(hue: int, amount: float, form: int, size_px: int = 64) -> Image.Image:
    """A small picture: a form on a ground, more of a colour the more style there is."""
    ground = Image.new("HSV", (size_px, size_px), (hue, int(220 * min(1, amount)), 200)).convert("RGB")
    draw = ImageDraw.Draw(ground)
    unit = size_px // 8
    ink = (40, 40 + 25 * form % 160, 90)
    shapes: list[Callable[[], None]] = [
        lambda: draw.ellipse((2 * unit, 2 * unit, 6 * unit, 6 * unit), fill=ink),
        lambda: draw.polygon([(unit, 7 * unit), (4 * unit, unit), (7 * unit, 7 * unit)], fill=ink),
        lambda: draw.rectangle((3 * unit, unit, 5 * unit, 7 * unit), fill=ink),
        lambda: draw.arc((unit, unit, 7 * unit, 7 * unit), 20, 300, fill=ink, width=unit),
    ]
    shapes[form % len(shapes)]()
    return ground


def draw_pictures(root: Path, evaluation: EvalReport, choice: Choice | None = None, size_px: int = 64) -> None:
    """All images that the records name."""
    pictures: list[tuple[str, Image.Image]] = []
    for cell in (*evaluation.cells, *evaluation.more_cells):
        amount = cell.mix.get(STYLE, 0.0)
        pictures += [
            (path, paint(60 * bool(cell.mix.get(OTHER)), amount, number // len(evaluation.seeds), size_px))
            for number, path in enumerate(cell.images)
        ]
    for candidate in choice.candidates if choice else ():
        amount = retention_at(candidate.epoch, candidate.weight)
        pictures += [(path, paint(10, amount, number, size_px)) for number, path in enumerate(candidate.samples)]
    base = choice.base_samples if choice else ()
    pictures += [(path, paint(10, 0.0, number, size_px)) for number, path in enumerate(base)]
    for path, picture in pictures:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / path)


class Structure(html.parser.HTMLParser):
    """Elements, what they would fetch, ids and links; fails where an element is closed that is not the open one, and where
    a table's rows are not equally wide.
    """

    VOID = frozenset({"meta", "img", "br", "link", "hr", "input", "path", "use", "rect", "circle", "line"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self._tables: list[collections.Counter[int]] = []  # of each open one the width of each row
        self._rows: list[int] = []  # of each open one the row that is read
        self.feed(page)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._note(tag, dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._note(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self.open, f"</{tag}> with nothing open"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"
        if tag == "table":
            widths, _ = set(self._tables.pop().values()), self._rows.pop()
            assert len(widths) == 1, f"a table with rows of {sorted(widths)} cells ends at {self.getpos()}"

    def _note(self, tag: str, attrs: dict[str, str | None]) -> None:
        assert not [name for name in attrs if name.startswith("on")]
        if attrs.get("id"):
            self.ids.append(str(attrs["id"]))
        self.loads += [str(attrs[name]) for name in ("src", "href", "xlink:href", "srcset", "data") if attrs.get(name)]
        if tag == "img":
            self.images.append(attrs)
        if tag == "table":
            self._tables.append(collections.Counter())
            self._rows.append(-1)
        elif tag == "tr":
            self._rows[-1] += 1
        elif tag in ("th", "td"):
            for down in range(int(attrs.get("rowspan") or 1)):
                self._tables[-1][self._rows[-1] + down] += int(attrs.get("colspan") or 1)

    @property
    def outside(self) -> list[str]:
        """What is neither in the page nor a place in it."""
        return [value for value in self.loads if not value.startswith(("data:image/", "#"))]
