"""What a person sees of a sweep: the plan and its price before it starts, a line a run as it ends, and the ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from brushset.cli.guard import print_event, stdout
from brushset.cli.sweeps.members import Member, planned_steps
from brushset.files import shown
from brushset.manifest import device_name
from brushset.page.template import duration
from brushset.paths import RunPaths, RunsDir
from brushset.protocols import Standing
from brushset.stages.train import wanted_bytes
from brushset.sweeps.cost import Cost, Planned, add_up, pace_of, read_history
from brushset.sweeps.ranking import Ranked

_ROWS = 24


@dataclass(frozen=True)
class Plan:
    """A sweep before it starts. `rungs` are the runs of each rung of a halving, else all of them at once; of the later
    rungs nobody knows yet which they will be.
    """

    name: str
    rungs: Sequence[Sequence[Member]]
    evaluates: bool
    how: str


def price(plan: Plan, runs: RunsDir) -> Cost:
    """What all of it takes."""
    history = read_history(runs, device_name())
    planned = []
    for member in (member for rung in plan.rungs for member in rung):
        steps, epochs = planned_steps(member)
        planned.append(Planned(steps, pace_of(member.spec, history), wanted_bytes(member.spec.train, epochs)))
    return add_up(planned, evaluates=plan.evaluates)


def show_plan(plan: Plan, cost: Cost, *, as_json: bool) -> None:
    """The runs, and what they take."""
    if as_json:
        members = [{"label": each.label, "settings": each.settings, "style": each.spec.name} for each in plan.rungs[0]]
        fields = {"name": plan.name, "how": plan.how, "rungs": [len(rung) for rung in plan.rungs], "members": members}
        print_event("sweep_plan", {**fields, "cost": vars(cost)})
        return
    table = Table("", "run", "steps", "epochs")
    for number, member in enumerate(plan.rungs[0], 1):
        if number <= _ROWS:
            steps, epochs = planned_steps(member)
            table.add_row(str(number), member.label, str(steps), str(epochs))
    stdout.print(table)
    if (hidden := len(plan.rungs[0]) - _ROWS) > 0:
        stdout.print(f"… and {hidden} more")
    stdout.print(f"sweep   {plan.name}: {plan.how}", markup=False)
    for number, rung in enumerate(plan.rungs if len(plan.rungs) > 1 else (), 1):
        stdout.print(f"rung {number}  {len(rung)} × {planned_steps(rung[0])[0]} steps", markup=False)
    for line in cost_lines(cost):
        stdout.print(line, markup=False)


def cost_lines(cost: Cost) -> list[str]:
    """The price in words; what is not known is said to be so."""
    if cost.training_minutes is None:
        time = "unknown: no run of this size is on record on this kind of device"
    else:
        after = "unknown" if cost.after_minutes is None else duration(cost.after_minutes * 60)
        time = (
            f"about {duration(cost.training_minutes * 60)} of training and {after} of evaluation, by "
            f"{cost.from_runs} runs on record, one after the other"
        )
    size = f"{cost.disk_bytes / 2**30:.1f} GiB" if cost.disk_bytes >= 2**30 else f"{cost.disk_bytes / 2**20:.0f} MiB"
    disk = f"about {size}" if cost.disk_known else f"up to {size} of adapters and states; images of evaluation unknown"
    return [f"length  {cost.runs} runs, {cost.steps} steps", f"time    {time}", f"disk    {disk}"]


@dataclass
class Progress:
    """Tells how each run ends, once; `labels` by run."""

    labels: dict[RunPaths, str]
    as_json: bool
    total: int
    _told: dict[RunPaths, str] = field(default_factory=dict)
    _over: int = 0

    def __call__(self, standings: Mapping[RunPaths, Standing]) -> None:
        """Hears how all stand."""
        for run, standing in standings.items():
            if self._told.get(run) == standing.state:
                continue
            self._told[run] = standing.state
            self._over += standing.over
            if self.as_json:
                fields = {"folder": str(run.root), "state": standing.state, "exit_code": standing.exit_code}
                print_event("sweep_run", {**fields, "label": self.labels[run], "words": standing.words})
            elif standing.over:
                sign = "✓" if standing.state == "finished" else "✗"
                words = f": {standing.words}" if standing.words else ""
                whole = max(self.total, len(standings))
                stdout.print(f"{sign} {self._over}/{whole}  {self.labels[run]}  {shown(run.root)}{words}", markup=False)


def show_ranking(ranked: Sequence[Ranked], *, as_json: bool) -> None:
    """The best runs first."""
    if as_json:
        return
    if all(each.value is None for each in ranked):
        notes = [each.score.reported.note for each in ranked if each.score and each.score.reported.note]
        if notes:
            stdout.print(f"no run has a score: {notes[0]}", markup=False)
        return
    table = Table("", "run", "score", "95 % interval", "measure", "folder")
    for number, each in enumerate(ranked[:_ROWS], 1):
        score = each.score
        known = score is not None and score.ranked_by is not None
        reported = score.reported if score else None
        value = "" if reported is None or reported.value is None else f"{reported.value:.3f}"
        bounds = "" if reported is None or reported.low is None else f"{reported.low:.3f} … {reported.high:.3f}"
        what = "" if score is None else score.measure + ("" if score.meaningful or not known else ", made up")
        table.add_row(str(number) if known else "–", each.label, value, bounds, what, shown(each.run.root))
    stdout.print(table)
