"""Which styles go together in the next pass? Those whose next batches have one shape, arranged so that passes are few.

Each style's order of batches is its own and is kept, since it would be the same alone; only who waits for whom is chosen.
So the passes are a common supersequence of the styles' shapes, and the fewest are the shortest one: for two styles found
in time n·m, for any number of them not feasible (Maier, JACM 25:2, 1978). A beam search finds a short one: of all that can
be reached in so many passes it goes on with the _WIDTH that got through most batches. On real sets, batch 4 and 20 epochs
(tests/test_native_schedule.py prints it): 1,125 passes for two styles where the fewest are 1,120 and taking the largest
group each time makes 1,229; 1,184 for three in place of 1,336. Where only one shape is shared little is left to gain: of
2,100 batches 1,660 passes, which no order of them goes below, in place of 1,668. It takes 0.1 ms a batch, once.

No style runs far ahead: the shares that two of them have done differ by no more than _LEAD and the batch that made it so.
Fewer passes still would come of filling up short batches with samples that count for nothing (1,620 of those 2,100, 2.4 %
fewer), but each of those costs what a sample costs; left out.

What is chosen depends on how far each style is, and on nothing else: those saved at one moment go on in the same passes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property

_WIDTH = 16
"""8, 16, 32 and 64 make 1,209, 1,184, 1,177 and 1,171 passes of the second example, each in twice the time of the last."""

_SECTION = 1000
"""Passes that are planned at once: what is remembered of them grows with their number."""

_LEAD, _LEAST_LEAD = 0.05, 4
"""How far a style may be ahead of the one that is furthest behind: a share of its training, at least so many batches, so
that in a short one there is a partner to wait for.
"""

Shape = Hashable
"""Bucket and number of samples of a batch."""

Places = tuple[int, ...]
"""How many batches each style has done."""


class Schedule:
    """The passes of one pack. `shapes` are those of all batches of each style, in its order, by row."""

    def __init__(self, shapes: Mapping[int, Sequence[Shape]]) -> None:
        names: dict[Shape, int] = {}
        self._rows = tuple(shapes)
        self._shapes = [[names.setdefault(each, len(names)) for each in own] for own in shapes.values()]
        self._end = tuple(len(own) for own in self._shapes)
        self._leads = [max(_LEAD, _LEAST_LEAD / most) for most in self._end]
        self._ways: dict[tuple[int, ...], dict[Places, list[int]]] = {}

    def choose(self, done: Mapping[int, int]) -> list[int]:
        """The rows of the next pass, evenly apart, for the styles that are trained on: how many batches each has done."""
        rows = tuple(done)
        if len(rows) == 1:
            return list(rows)
        if rows not in self._ways:
            self._ways[rows] = self._walk(rows)
        planned = self._ways[rows].get(tuple(done.values()))
        return planned or self._choose_alone(tuple(map(done.get, self._rows, self._end)))

    def batches(self, done: Mapping[int, int]) -> int:
        """How many batches are left."""
        ends = dict(zip(self._rows, self._end, strict=True))
        return sum(ends[row] - at for row, at in done.items())

    def count(self, done: Mapping[int, int]) -> int:
        """How many passes are left, if no style ends early."""
        left, passes = dict(done), 0
        ends = dict(zip(self._rows, self._end, strict=True))
        while left := {row: at for row, at in left.items() if at < ends[row]}:
            for row in self.choose(left):
                left[row] += 1
            passes += 1
        return passes

    def _walk(self, rows: tuple[int, ...]) -> dict[Places, list[int]]:
        """Who goes next, by how far these styles are, along the plan for all: the others' passes are left out. Where one
        ended early the rest are on it still; where they are not, because the pack was another one, `choose` does without.
        """
        way: dict[Places, list[int]] = {}
        at = dict.fromkeys(rows, 0)
        for planned in self._plan:
            group = [row for row in planned if row in at]
            if group:
                way[tuple(at.values())] = evenly_apart(group)
            for row in group:
                at[row] += 1
        return way

    @cached_property
    def _plan(self) -> list[list[int]]:
        """The rows of every pass, from the first on."""
        at, plan = (0,) * len(self._rows), list[list[int]]()
        while at != self._end:
            section, at = self._search(at)
            plan += section
        return [[self._rows[style] for style in group] for group in plan]

    def _search(self, start: Places) -> tuple[list[list[int]], Places]:
        """A good section of a plan from `start` on: the styles of its passes, and where they lead to."""
        beam, came = [start], list[dict[Places, tuple[Places, list[int]]]]()
        while beam[0] != self._end and len(came) < _SECTION:
            reached: dict[Places, tuple[Places, list[int]]] = {}
            for at in beam:
                for group in self._groups(at):
                    after = list(at)
                    for style in group:
                        after[style] += 1
                    reached.setdefault(tuple(after), (at, group))
            beam = sorted(reached, key=lambda at: (-sum(at), at))[:_WIDTH]
            came.append({at: reached[at] for at in beam})
        section, at = [], beam[0]
        for step in reversed(came):
            at, group = step[at]
            section.append(group)
        return section[::-1], beam[0]

    def _choose_alone(self, at: Places) -> list[int]:
        """Off the plan: the largest group, of two the one with the style that is furthest behind."""
        groups = self._groups(at)
        best = max(groups, key=lambda group: (len(group), -min(at[style] / self._end[style] for style in group)))
        return [self._rows[style] for style in best]

    def _groups(self, at: Places) -> list[list[int]]:
        """Styles, by their places, that could go together next, of those that are neither over nor too far ahead."""
        shares = [done / most for done, most in zip(at, self._end, strict=True)]
        least = min(shares)
        groups: dict[int, list[int]] = {}
        for style, share in enumerate(shares):
            if share < 1 and share - least <= self._leads[style]:
                groups.setdefault(self._shapes[style][at[style]], []).append(style)
        return [group[: len(evenly_apart([self._rows[style] for style in group]))] if len(group) > 2 else group
                for group in groups.values()]  # fmt: skip


def evenly_apart(rows: Sequence[int]) -> list[int]:
    """The longest beginning of rows, ascending, that is an arithmetic progression: one view of the flat buffer."""
    end = 2
    while end < len(rows) and rows[end] - rows[end - 1] == rows[1] - rows[0]:
        end += 1
    return list(rows[:end])
