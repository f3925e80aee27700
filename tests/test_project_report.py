"""The page of several styles: what stands on it, from the runs' own records, and when it is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import report_case as case
from report_case import Structure
from test_report import make_records, make_spec, make_trained

from brushset.cli.project import find_together, read_style, update_project, write_project
from brushset.load import spec_text
from brushset.log import silent
from brushset.page.project import (
    Agreement,
    Findings,
    StyleRun,
    mixing_board,
    plot_agreement,
    project_json,
    render_project,
)
from brushset.paths import RunPaths, RunsDir
from brushset.records import Choice, Estimate, EvalReport, Record
from brushset.stage_records import StageRecord

RUN_ID = "20250101-000000-abcd"
STAGES = {"audit": "Audit", "preprocess": "Prepared", "train": "Trained", "choose": "Choice", "evaluate": "EvalReport"}


def as_style(evaluation: EvalReport, style: str) -> EvalReport:
    """The same report with the two styles' parts exchanged where it is the other's."""
    if style == case.STYLE:
        return evaluation
    mapping = {case.STYLE: case.OTHER, case.OTHER: case.STYLE}
    text = evaluation.model_dump_json()
    for old, new in mapping.items():
        text = text.replace(f'"{old}', f'"\0{new}').replace(f"+ {old}", f"+ \0{new}")
    return EvalReport.model_validate_json(text.replace("\0", ""))


def add_run(runs: RunsDir, style: str, *, tone: str = "better", until: str = "report", mixes: bool = True) -> RunPaths:
    """A run as the stages leave it, without weights."""
    run = runs.run(style, RUN_ID)
    run.record("x").parent.mkdir(parents=True)
    run.manifest.write_text("{}")
    run.spec.write_text(spec_text(make_spec(name=style)))
    evaluation = as_style(case.make_rich_evaluation(mixes=mixes), style)
    records: dict[type[Record], Record] = make_records("/images", trained=make_trained(points=3), evaluation=evaluation)
    records[Choice] = case.make_choice()
    by_name = {kind.__name__: record for kind, record in records.items()}
    for index, (stage, kind) in enumerate(STAGES.items()):
        record = StageRecord(
            stage=stage, version=1, digest="d", started_at=0, ended_at=10.0 * index, outputs={},
            data=by_name[kind].model_dump(mode="json"),
        )  # fmt: skip
        run.record(stage).write_text(record.model_dump_json())
    case.draw_pictures(run.root, evaluation)
    if until == "report":
        last = StageRecord(stage="report", version=2, digest="d", started_at=0, ended_at=1, outputs={}, data={})
        run.record("report").write_text(last.model_dump_json())
        claims = {
            "meaningful": tone != "machinery", "verdict": {"tone": tone, "headline": f"Use epoch 8 <of {style}>", "text": ""},
            "use": {"epoch": 8, "weight": 0.8},
            "numbers": [{"title": "Style kept, ρ", "meaningful": True, "value": 0.76, "low": 0.7, "high": 0.8, "note": ""}],
        }  # fmt: skip
        (run.root / "report.json").write_text(json.dumps(claims))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> RunsDir:
    """Two styles that were reported, and one that was not."""
    folder = RunsDir(tmp_path_factory.mktemp("runs of its own"))
    add_run(folder, case.STYLE)
    add_run(folder, case.OTHER)
    add_run(folder, "watercolor", until="evaluate", mixes=False)
    return folder


@pytest.fixture(scope="module")
def page(runs: RunsDir) -> str:
    path = write_project(runs)
    assert path == runs.root / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_names_every_style_and_links_to_its_run_by_a_relative_path(page: str, runs: RunsDir) -> None:
    found = Structure(page)
    assert found.outside == [f"anime/{RUN_ID}/report.html", f"cartoon/{RUN_ID}/report.html"]
    assert str(runs.root) not in page, "the folder may be moved"
    assert "Use epoch 8 &lt;of cartoon&gt;" in page
    assert "No report yet" in page
    assert len(found.images) == 4 + 4 + 3, "generated, and those of the mix"
    assert len(page) < 400_000


def test_the_page_holds_interference_board_and_times(page: str) -> None:
    assert "What styles do to one another" in page
    assert "anime 0.5 + cartoon 0.5" in page
    assert page.count("mixing board") == 1
    for stage in STAGES:
        assert f">{stage}</th>" in page


def test_the_json_says_the_same(page: str, runs: RunsDir) -> None:
    written = json.loads((runs.root / "report.json").read_text())
    assert [each["style"] for each in written["styles"]] == ["anime", "cartoon", "watercolor"]
    assert written["styles"][1]["use"] == {"epoch": 8, "weight": 0.8}
    assert written["styles"][2]["verdict"] is None
    assert written["interference"]["rows"] == ["anime", "cartoon", "watercolor"]
    by_pair = dict(zip(written["interference"]["columns"], written["interference"]["entries"][1], strict=True))
    assert by_pair["anime"]["value"] == 0.61, "what the mix leaves of cartoon"
    assert by_pair["watercolor"]["value"] is None
    assert [mix["styles"] for mix in written["mixes"]] == [["anime", "cartoon"]] or len(written["mixes"]) == 1


def test_a_single_style_makes_no_page_and_keeps_one_that_is_there_up_to_date(tmp_path: Path) -> None:
    runs, told = RunsDir(tmp_path), []
    add_run(runs, "cartoon")
    update_project(["cartoon", "anime"], runs, silent)
    assert not (tmp_path / "report.html").exists()
    add_run(runs, "anime")
    update_project(["anime"], runs, silent)
    assert not (tmp_path / "report.html").exists(), "a command on one style"
    update_project(["anime", "cartoon"], runs, lambda event, **fields: told.append((event, fields)))
    assert (tmp_path / "report.html").is_file()
    assert told[0][0] == "note"
    before = (tmp_path / "report.html").stat().st_mtime_ns
    update_project(["anime"], runs, silent)
    assert (tmp_path / "report.html").stat().st_mtime_ns > before


def test_made_up_runs_are_told_on_top(runs: RunsDir) -> None:
    styles = [read_style(runs.run(style, RUN_ID), runs) for style in ("cartoon", "anime")]
    made_up = [with_tone(run, "machinery") for run in styles]
    assert "These runs prove only that the machinery works" in render_project(made_up, Findings(None, ()))
    assert "Not of all styles" in render_project([made_up[0], styles[1]], Findings(None, ()))
    honest = render_project(styles, Findings(None, ()))
    assert "machinery works" not in honest
    assert 'id="agreement"' not in honest


def test_without_mixes_there_is_no_section_of_them(runs: RunsDir) -> None:
    styles = [read_style(runs.run(style, RUN_ID), runs) for style in ("cartoon", "anime")]
    alone = [
        dataclasses.replace(run, evaluation=run.evaluation.model_copy(update={"mix_choices": ()}))
        for run in styles
        if run.evaluation
    ]
    found = find_together(alone)
    assert found == Findings(None, ())
    assert 'id="mixes"' not in render_project(alone, found)
    assert project_json(alone, found)["interference"] is None


def test_of_two_runs_that_mixed_a_pair_the_one_that_surely_leaves_most_is_advised(runs: RunsDir) -> None:
    cartoon, anime = (read_style(runs.run(style, RUN_ID), runs) for style in ("cartoon", "anime"))
    assert anime.evaluation is not None
    choice = anime.evaluation.mix_choices[0]
    better = choice.model_copy(
        update={
            "chosen": choice.chosen.model_copy(
                update={"mix": {"cartoon": 0.4, "anime": 0.6}, "least": case.estimate(0.9, 0.02), "cell": "x"}
            )
        }
    )
    anime = dataclasses.replace(anime, evaluation=anime.evaluation.model_copy(update={"mix_choices": (better,)}))
    boards = mixing_board([cartoon, anime])
    assert len(boards) == 1
    assert boards[0].told_by == "anime"
    assert boards[0].otherwise == ("cartoon's run advises cartoon 0.5 + anime 0.5",)


def test_agreement_is_drawn_from_three_pairs_on_and_told_with_its_interval(runs: RunsDir) -> None:
    pairs = (("a + b", 0.1, 0.2), ("a + c", 0.3, 0.5), ("b + c", 0.2, 0.1))
    many = Agreement("weights", "cosine", pairs, Estimate(value=0.5, low=-0.2, high=0.9))
    few = dataclasses.replace(many, pairs=pairs[:2], rank_correlation=Estimate(value=None, note="2 pairs"))
    assert "<svg" in plot_agreement(many)
    assert not plot_agreement(few)
    styles = [read_style(runs.run("cartoon", RUN_ID), runs)]
    page = render_project(styles, Findings(None, (many, few)))
    assert "Rank correlation +0.50 (−0.20 to 0.90) over 3 pairs" in page
    assert "No correlation is told: 2 pairs" in page


def with_tone(run: StyleRun, tone: str) -> StyleRun:
    assert run.claims is not None
    return dataclasses.replace(run, claims={**run.claims, "verdict": {**run.claims["verdict"], "tone": tone}})
