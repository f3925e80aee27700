"""Where candidates' images are made: each once, whatever round asks, all checkpoints of a round in one go.

Checkpoints stand side by side on one base model as adapters of their own ("cartoon@12"), at most 12 at a time: 0.15 GB of
memory each at rank 32. One whose file or images are broken is left out with the reason, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from brushset.chosen import KeptFile
from brushset.errors import UsageError, VerificationFailed
from brushset.generator import ImageJob, MultiLoRAGenerator
from brushset.images import is_flat
from brushset.pipeline import StageContext
from eval.aside import Aside
from eval.cells import Place, PlannedCell, words_cell
from eval.choose.candidates import Way
from eval.frames import Frames
from eval.kept_images import KEPT, KeepsBase
from eval.pace import Pace
from eval.sample import sampling_for

ADAPTERS_AT_ONCE = 12
OpenGenerator = Callable[[], tuple[MultiLoRAGenerator, KeepsBase]]
"""The generator, to load adapters into, and the same keeping the base's images."""
Wanted = tuple[PlannedCell, Place]


@dataclass
class Studio:
    """Makes images below `folder`, one a cell and place. `broken` are the ways that cannot be looked at, and why; `images`
    were made here, base images kept from elsewhere not counted.
    """

    context: StageContext
    files: Mapping[int, KeptFile]
    folder: Path
    open: OpenGenerator
    broken: dict[Way, str] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0
    frames: Frames = field(default_factory=Frames)
    _made: set[Path] = field(default_factory=set)
    _opened: tuple[MultiLoRAGenerator, KeepsBase] | None = None
    _loaded: set[str] = field(default_factory=set)

    @property
    def words(self) -> PlannedCell:
        """The base told the style in words."""
        return words_cell(self.context.spec)

    def cell(self, way: Way) -> PlannedCell:
        """A candidate's cell: "cartoon@12 0.8"."""
        return PlannedCell(((self._adapter(way.epoch), way.weight),), (self.context.spec.trigger,), "alone")

    def file(self, cell: PlannedCell, place: Place) -> Path:
        """Where an image is, or will be."""
        return self.folder / cell.folder / place.file

    def make(self, places: Sequence[Place], ways: Sequence[Way] = (), baselines: Sequence[PlannedCell] = ()) -> None:
        """Makes what is not there yet.

        Raises:
            VerificationFailed: an image by the base itself is broken.
        """
        self._make([(cell, place) for cell in baselines for place in places])
        epochs = sorted({way.epoch for way in ways})
        for start in range(0, len(epochs), ADAPTERS_AT_ONCE):
            some = epochs[start : start + ADAPTERS_AT_ONCE]
            group = [way for way in ways if way.epoch in some and way not in self.broken]
            if self._missing(group, places):
                self._load(some, group)
                self._make_of(group, places)

    def count_missing(self, places: Sequence[Place], ways: Sequence[Way], baselines: Sequence[PlannedCell]) -> int:
        """How many images `make` would make."""
        base = [cell for cell in baselines for place in places if self.file(cell, place) not in self._made]
        return len(base) + len(self._missing(ways, places))

    def whole(self, ways: Iterable[Way]) -> list[Way]:
        """Those of which every image is there."""
        return [way for way in ways if way not in self.broken]

    def release(self) -> None:
        """Frees the model; the next image loads it again."""
        self._opened = None
        self._loaded.clear()

    def _make_of(self, ways: Sequence[Way], places: Sequence[Place]) -> None:
        """All at once; where an image is broken, one way after the other, to know whose it is."""
        try:
            self._make(self._missing(ways, places))
        except VerificationFailed:
            for way in ways:
                self._make_alone(way, places)

    def _make_alone(self, way: Way, places: Sequence[Place]) -> None:
        try:
            self._make(self._missing([way], places))
        except VerificationFailed as error:
            self._break(way, str(error).splitlines()[0])

    def _missing(self, ways: Sequence[Way], places: Sequence[Place]) -> list[Wanted]:
        wanted = [(self.cell(way), place) for way in ways if way not in self.broken for place in places]
        return [(cell, place) for cell, place in wanted if self.file(cell, place) not in self._made]

    def _make(self, wanted: Sequence[Wanted]) -> None:
        missing = [each for each in wanted if self.file(*each) not in self._made]
        if not missing:
            return
        jobs = [ImageJob(cell.prompt(place.prompt), place.seed, cell.mix) for cell, place in missing]
        spec, (_, keeping) = self.context.spec, self._generator()
        for folder in {self.file(*each).parent for each in missing}:
            folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with Aside() as aside:
            for index, image in keeping.generate_jobs(jobs, sampling_for(spec.evaluate, spec.train.clip_skip)):
                cell, place = missing[index]
                if cell.mix and is_flat(image):
                    self._break(self._way(cell), f"an image is of one single colour: {place.prompt}, seed {place.seed}")
                path = self.file(cell, place)
                self.frames.put(path, image)
                aside.save(image, path)
                self._made.add(path)
                self.images += KEPT not in image.info
        self.seconds += time.monotonic() - started

    def _load(self, epochs: Sequence[int], ways: Sequence[Way]) -> None:
        """Exactly these checkpoints, as far as they can be loaded."""
        generator, _ = self._generator()
        for name in self._loaded - {self._adapter(epoch) for epoch in epochs}:
            generator.unload_lora(name)
            self._loaded.discard(name)
        for epoch in epochs:
            name = self._adapter(epoch)
            if name in self._loaded:
                continue
            try:
                generator.load_lora(self.context.run.root / self.files[epoch].path, name)
                self._loaded.add(name)
            except (UsageError, VerificationFailed) as error:
                for way in ways:
                    if way.epoch == epoch:
                        self._break(way, str(error).splitlines()[0])

    def _break(self, way: Way, why: str) -> None:
        if way not in self.broken:
            self.context.emit("warning", text=f"{way}: left out: {why}")
            self.broken[way] = why

    def _generator(self) -> tuple[MultiLoRAGenerator, KeepsBase]:
        if self._opened is None:
            self._opened = self.open()
        return self._opened

    def _adapter(self, epoch: int) -> str:
        return f"{self.context.spec.name}@{epoch}"

    def _way(self, cell: PlannedCell) -> Way:
        ((name, weight),) = cell.mix
        return Way(int(name.rpartition("@")[2]), weight)


@dataclass(frozen=True)
class Asked:
    """What is to be drawn: prompts by number and seeds, of each of these ways and baselines. `name` is what people call it."""

    name: str
    prompts: tuple[int, ...]
    seeds: tuple[int, ...]
    ways: Sequence[Way]
    baselines: tuple[PlannedCell, ...]


def draw_within(
    studio: Studio, pace: Pace, asked: Asked, *, first: Sequence[int] = (), reserved: int = 0
) -> tuple[int, ...]:  # fmt: skip
    """Draws as many of the prompts as the minutes allow, and returns which; all ways have the same. Says what is left out."""

    def places(some: Sequence[int]) -> list[Place]:
        return places_of(some, asked.seeds, studio.context.spec.evaluate.prompts)

    def cost(some: Sequence[int]) -> int:
        return studio.count_missing(places(some), asked.ways, asked.baselines)

    drawn: set[int] = set()
    for some in pace.slices(asked.prompts, cost, first=first, reserved=reserved):
        studio.make(places(some), asked.ways, asked.baselines)
        drawn.update(some)
    if len(drawn) < len(asked.prompts):
        what = f"{len(asked.prompts) - len(drawn)} of {len(asked.prompts)} prompts of {asked.name} were not drawn"
        studio.context.emit("note", text=pace.left_out(what))
    return tuple(number for number in asked.prompts if number in drawn)


def places_of(prompts: Iterable[int], seeds: Iterable[int], texts: Sequence[str]) -> list[Place]:
    """Prompts by number, under each its seeds."""
    some = list(seeds)
    return [Place(number, texts[number], seed) for number in prompts for seed in some]
