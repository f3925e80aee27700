"""`compare`: which runs are meant, what differs, what the page and the console say of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import report_case as case
from report_case import Structure
from test_project_report import RUN_ID, add_run
from test_report import make_spec, make_trained

import orchestrate
from brushset.cli.compare import compare_runs, find_run, read_runs
from brushset.cli.guard import guarded
from brushset.cli.options import Options
from brushset.errors import UsageError
from brushset.load import spec_text
from brushset.page.compare import difference_line, setting_rows, shared_grid
from brushset.paths import RunPaths, RunsDir
from brushset.records import Difference, Estimate, Trained
from brushset.spec import EvaluateSection

LATER = "20250202-000000-beef"
SETTINGS = EvaluateSection(prompts=case.PROMPTS, seeds=case.SEEDS)
STAGES = [stage.name for stage in orchestrate.STAGES]


def change_record(run: RunPaths, stage: str, **changes: object) -> None:
    path = run.record(stage)
    record = json.loads(path.read_text())
    record["data"] |= changes
    path.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> RunsDir:
    """Two runs of cartoon that were evaluated at the same prompts, the second better; a third is trained alone."""
    runs = RunsDir(tmp_path_factory.mktemp('runs <"of" its & own>'))
    first = add_run(runs, "cartoon")
    second = runs.run("cartoon", LATER)
    shutil.copytree(first.root, second.root)
    evaluation = case.make_rich_evaluation()
    for run, shift, spec in (
        (first, 0.0, make_spec(evaluate=SETTINGS, description="$10 <b>")),
        (second, 0.06, make_spec(evaluate=SETTINGS, train=make_spec().train.model_copy(update={"network_dim": 64}))),
    ):
        run.spec.write_text(spec_text(spec))
        (run.eval / "values.json").write_text(case.make_values(evaluation, shift=shift).model_dump_json())
    trained = make_trained(points=60)
    change_record(first, "train", **Trained.model_dump(trained, mode="json"))
    change_record(second, "train", engine="kohya", engine_version="c0ffee", device="cuda:0")
    third = add_run(runs, "anime", until="evaluate")
    for stage in ("evaluate", "choose"):
        third.record(stage).unlink()
    return runs


@pytest.fixture(scope="module")
def compared(runs: RunsDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "page.html"
    names = [f"cartoon/{RUN_ID}", f"cartoon/{LATER}", "anime"]
    compare_runs(Options(runs_dir=runs.root), names, STAGES, out)
    return out


def test_the_page_is_well_formed_and_links_relatively_to_each_run(compared: Path, runs: RunsDir) -> None:
    found = Structure(compared.read_text())
    assert len(found.outside) == 3
    for link in found.outside:
        assert not link.startswith(("/", "http"))
    assert "<b>" not in compared.read_text()


def test_the_page_shows_only_settings_that_differ(compared: Path) -> None:
    page = compared.read_text()
    assert "train.network_dim" in page
    assert "train.network_alpha" not in page
    assert "$10 &lt;b&gt;" in page
    written = json.loads(compared.with_suffix(".json").read_text())
    assert written["settings"]["train.network_dim"] == ["32", "64", "32"]
    assert written["surroundings"]["engine"] == ["native", "kohya", "native"]


def test_the_difference_is_told_with_its_paired_interval(compared: Path) -> None:
    written = json.loads(compared.with_suffix(".json").read_text())
    against = {each["letter"]: {score["metric"]: score for score in each["scores"]} for each in written["differences"]}
    style = against["B"]["style_similarity_csd"]["difference"]
    assert style["value"] == pytest.approx(0.06, abs=1e-9), "equal seeds of noise, one shifted"
    assert against["B"]["fid"]["difference"]["low"] is None
    assert against["C"] == {}
    page = compared.read_text()
    assert "B against A" in page
    assert "no paired interval" in page
    assert "one of them was evaluated" in page


def test_unfinished_runs_are_compared_as_far_as_they_came(compared: Path, runs: RunsDir) -> None:
    written = json.loads(compared.with_suffix(".json").read_text())
    assert {"choose", "evaluate", "export"} <= set(written["runs"][2]["missing"])
    assert "train" not in written["runs"][2]["missing"]
    assert "not done: " in compared.read_text()


def test_the_same_places_stand_side_by_side_behind_the_base(runs: RunsDir) -> None:
    found = read_runs([f"cartoon/{RUN_ID}", f"cartoon/{LATER}"], runs, STAGES)
    grid = shared_grid(found)
    assert grid is not None
    assert grid.columns == ("base of A", "A: cartoon 0.8", "B: cartoon 0.8")
    assert [(row.prompt, row.seed) for row in grid.rows][:2] == [(case.PROMPTS[0], 1), (case.PROMPTS[0], 2)]
    assert grid.places == len(case.PROMPTS) * len(case.SEEDS)
    assert shared_grid(found[:1]) is None or len(shared_grid(found[:1]).columns) == 2  # type: ignore[union-attr]


def test_a_run_is_named_by_folder_by_style_and_run_or_by_style(runs: RunsDir) -> None:
    by_folder = find_run(str(runs.run("cartoon", RUN_ID).root), runs)
    assert by_folder.root == find_run(f"cartoon/{RUN_ID}", runs).root
    assert find_run("cartoon", runs).run_id == LATER, "the newest"


def test_what_is_wrong_with_the_names_is_told_at_once_with_what_there_is(runs: RunsDir) -> None:
    with pytest.raises(UsageError) as told:
        read_runs(["cartoons", f"cartoon/{LATER}x", "anime", "anime"], runs, STAGES)
    lines = str(told.value).splitlines()
    assert len(lines) == 3
    assert "styles with runs: anime, cartoon" in lines[0]
    assert f"runs of cartoon: {RUN_ID}, {LATER}" in lines[1]
    assert "is the same run as C" in lines[2]
    with pytest.raises(UsageError, match="1 run; two or more"):
        read_runs(["anime"], runs, STAGES)


def test_the_command_writes_into_the_folder_of_runs_and_prints_a_table(
    runs: RunsDir, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["compare", f"cartoon/{RUN_ID}", f"cartoon/{LATER}", "--runs-dir", str(runs.root)]
    assert guarded(orchestrate.app, argv) == 0
    printed = capsys.readouterr().out
    for wanted in ("train.network_dim", "Style kept, ρ (CSD)", "95 % interval", "page:"):
        assert wanted in printed, wanted
    assert (runs.root / f"compare-cartoon-{RUN_ID}-{LATER}.html").is_file()
    assert guarded(orchestrate.app, [*argv, "--json"]) == 0
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert event["event"] == "compare"
    assert guarded(orchestrate.app, [*argv, "--out", "page.txt"]) == 2


def test_images_that_were_sampled_otherwise_are_told_so(compared: Path) -> None:
    written = json.loads(compared.with_suffix(".json").read_text())
    assert written["sampled_otherwise"] == ["evaluate.width", "evaluate.height"]
    assert "part of the difference is that" in compared.read_text()


def test_settings_of_one_spec_and_a_changed_copy() -> None:
    spec = make_spec()
    other = spec.model_copy(update={"train": spec.train.model_copy(update={"extra": {"a": 1}, "seed": 7})})
    assert setting_rows([spec, spec]) == []
    assert {row.name: row.values for row in setting_rows([spec, other])} == {
        "train.seed": ("42", "7"), "train.extra": ("{}", "–"), "train.extra.a": ("–", "1"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "said"),
    [
        (0.1, 0.3, True, "better"), (0.1, 0.3, False, "worse"), (-0.3, -0.1, False, "better"),
        (-0.1, 0.1, True, "cannot be told apart"), (0.1, 0.3, None, "higher"), (None, None, True, ""),
    ],
)  # fmt: skip
def test_only_a_difference_that_is_certain_is_called_better_or_worse(
    low: float | None, high: float | None, higher_is_better: bool | None, said: str
) -> None:
    nothing = Estimate(value=None)
    found = Estimate(value=0.2 if low is None or low > 0 else -0.2, low=low, high=high)
    item = Difference(
        metric="m", first=nothing, second=nothing, difference=found, higher_is_better=higher_is_better, meaningful=True
    )
    assert difference_line(item) == said
