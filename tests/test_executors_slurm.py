"""What sbatch is told, and what a job does with its run; Slurm's programs are stand-ins that write down what they hear.

With a real Slurm: tests/test_executors_contract.py.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import put_on_path
from pydantic import ValidationError

from brushset.errors import EnvironmentProblem
from brushset.executors.slurm import SlurmExecutor, batch_script, sbatch_argv
from brushset.load import load_style
from brushset.paths import PROJECT, STYLES, RunPaths
from brushset.protocols import Handle, Task
from brushset.spec import SlurmSection
from brushset.workers import append, event_of_ours, note_cancelled, note_submitted, read_workers

FAKE_RUN = Path(__file__).with_name("fake_run.py")
NASTY = "$(touch pwned) `id` \"'\n; rm -rf %a"
TELLS = """
import os, sys
with open(os.environ["HEARD"], "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
print(os.environ.get("SAYS", ""))
"""


def test_the_script_is_the_same_for_every_run_and_reads_no_name() -> None:
    assert batch_script(SlurmSection()) == (
        "#!/bin/bash -l\n"
        "# One run of a list. The words behind this script are the command; which run it is says the array's index.\n"
        'exec >> "$SLURM_ARRAY_TASK_ID.log" 2>&1\n'
        'exec "$@" "$SLURM_ARRAY_TASK_ID"\n'
    )
    with_setup = batch_script(SlurmSection(setup=("module purge", "module load cuda/12.8")))
    assert 'module purge\nmodule load cuda/12.8\nexec "$@"' in with_setup


def test_sbatch_is_told_everything_as_words() -> None:
    settings = SlurmSection(
        partition="gpu", account="lab", qos="high", time="02:00:00", gres="gpu:h100:1", cpus_per_task=6, mem="32G", at_once=4,
        container=("apptainer", "exec", "--nv", "/im ages/x.sif"), python="/opt/python", sbatch=("--constraint=h100", "--comment=it's"),
    )  # fmt: skip
    assert sbatch_argv(settings, Path(f"/runs/{NASTY}"), 12) == [
        "sbatch", "--parsable", "--job-name=brushset", "--array=0-11%4", "--nodes=1", "--ntasks=1", "--cpus-per-task=6",
        "--requeue", "--open-mode=append", "--signal=B:TERM@120", f"--chdir=/runs/{NASTY}", "--output=/dev/null",
        "--partition=gpu", "--account=lab", "--qos=high", "--time=02:00:00", "--gres=gpu:h100:1", "--mem=32G",
        "--constraint=h100", "--comment=it's", f"/runs/{NASTY}/job.sh",
        "apptainer", "exec", "--nv", "/im ages/x.sif", "env", f"PYTHONPATH={PROJECT}", "/opt/python", "-m",
        "brushset.executors.slurm", f"/runs/{NASTY}/runs.json",
    ]  # fmt: skip
    bare = sbatch_argv(SlurmSection(gres=None), Path("/r"), 1)
    assert not [word for word in bare if word.startswith(("--gres", "--partition", "--mem"))]
    assert "--array=0-0" in bare


def test_a_profile_carries_a_clusters_settings_and_a_time_needs_no_quotes(tmp_path: Path) -> None:
    profile = tmp_path / "cluster.toml"
    profile.write_text(
        '[executor]\nuse = "slurm"\nmax_retries = 5\n[executor.slurm]\npartition = "a100"\ntime = 04:30:00\n'
    )
    executor = load_style(STYLES / "cartoon.toml", profiles=[profile], settings=["executor.slurm.qos=low"]).executor
    assert (executor.use, executor.max_retries) == ("slurm", 5)
    assert (executor.slurm.partition, executor.slurm.time, executor.slurm.qos) == ("a100", "04:30:00", "low")


@pytest.mark.parametrize(
    ("limit", "wrong"),
    [
        ("5", ""), ("8:00:00", ""), ("90:30", ""), ("1-0", ""), ("2-12:30", ""), ("1-00:00:10", ""),
        ("4", "at least 5 minutes"), ("4:59", "at least 5"), ("0:04:59", "at least 5"), ("0-0:04", "at least 5"),
        ("4h", "expected minutes"), ("", "expected minutes"), ("1:2:3:4", "expected minutes"),
    ],
)  # fmt: skip
def test_a_time_limit_is_one_that_slurm_knows_and_a_run_can_work_within(limit: str, wrong: str) -> None:
    if not wrong:
        assert SlurmSection(time=limit).time == limit
        return
    with pytest.raises(ValidationError, match=wrong):
        SlurmSection(time=limit)


class Job:
    """One job of an array, outside Slurm: `serve` as the batch script starts it."""

    def __init__(self, folder: Path, *words: str, max_retries: int = 2) -> None:
        self.run = RunPaths(folder / NASTY.replace("/", "") / "cartoon" / "one")
        self.run.root.mkdir(parents=True)
        self.heard = folder / "heard"
        note_submitted(self.run, submission="s", executor="slurm")
        argv = [sys.executable, str(FAKE_RUN), str(self.run.root), *words]
        entry = {"root": str(self.run.root), "argv": argv}
        listed = {"submission": "s", "max_retries": max_retries, "runs": [entry, entry]}
        (folder / "runs.json").write_text(json.dumps(listed))
        self.argv = [sys.executable, "-m", "brushset.executors.slurm", str(folder / "runs.json"), "1"]

    def start(self, says: str = "RUNNING", restarts: int = 0) -> subprocess.Popen[bytes]:
        slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": str(restarts)}
        own = {"PYTHONPATH": str(PROJECT), "HEARD": str(self.heard), "SAYS": says}
        return subprocess.Popen(self.argv, env={**os.environ, **slurm, **own}, stdout=subprocess.DEVNULL)

    def wait_for_a_step(self) -> None:
        deadline = time.monotonic() + 60
        while not (self.run.root / "state.json").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    @property
    def told(self) -> list[str]:
        return self.heard.read_text().splitlines() if self.heard.is_file() else []


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.environ["PATH"]
    for name in ("squeue", "scontrol", "sbatch", "scancel", "sacct"):
        put_on_path(monkeypatch, tmp_path / "bin", name, TELLS)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{path}")
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))


def test_a_time_limit_saves_and_puts_the_job_back_into_the_queue(tmp_path: Path) -> None:
    job = Job(tmp_path, "--steps", "1000")
    with job.start() as served:
        job.wait_for_a_step()
        began = time.monotonic()
        served.send_signal(signal.SIGTERM)  # --signal=B:TERM@120
        assert served.wait(40) == 143
    assert time.monotonic() - began < 20
    assert job.told == ["-h -j 7_1 -o %T", "requeue 7_1"]
    assert read_workers(job.run).exit_code == 143
    assert json.loads((job.run.root / "state.json").read_text())["step"] >= 1


def test_a_killed_run_is_requeued_and_a_verdict_is_not(tmp_path: Path) -> None:
    killed = Job(tmp_path / "a", "--steps", "1000")
    with killed.start() as served:
        killed.wait_for_a_step()
        os.kill(int((killed.run.root / "pids").read_text().split()[0]), signal.SIGKILL)
        assert served.wait(60) == 0
    assert killed.told == ["-h -j 7_1 -o %T", "requeue 7_1"]
    for number, words in enumerate((("--exit", "3"), ("--steps", "1"), ("--silent",))):
        job = Job(tmp_path / str(number), *words)
        assert job.start().wait(60) == 0
        assert job.told == []


def test_a_job_that_is_being_cancelled_does_not_rise_again(tmp_path: Path) -> None:
    by_slurm = Job(tmp_path / "a", "--steps", "1000")
    with by_slurm.start(says="COMPLETING") as served:
        by_slurm.wait_for_a_step()
        served.send_signal(signal.SIGTERM)
        served.wait(40)
    assert by_slurm.told == ["-h -j 7_1 -o %T"]
    by_us = Job(tmp_path / "b", "--steps", "1000")
    with by_us.start() as served:
        by_us.wait_for_a_step()
        note_cancelled(by_us.run)
        served.wait(60)
    assert by_us.told == []
    assert by_us.start().wait(60) == 0
    assert len(read_workers(by_us.run).starts) == 1


def test_requeues_have_an_end(tmp_path: Path) -> None:
    job = Job(tmp_path / "a", "--steps", "1000", max_retries=0)
    with job.start() as served:
        job.wait_for_a_step()
        os.kill(int((job.run.root / "pids").read_text().split()[0]), signal.SIGKILL)
        served.wait(60)
    assert job.told == []
    often = Job(tmp_path / "b", "--steps", "1000")
    with often.start(restarts=100) as served:
        often.wait_for_a_step()
        served.send_signal(signal.SIGTERM)
        served.wait(40)
    assert often.told == []


def handle_on(tmp_path: Path) -> Handle:
    run = RunPaths(tmp_path / "runs" / "cartoon" / "one")
    run.root.mkdir(parents=True)
    return Handle(Task(run, ("true",), ("train",)), "s", "7_0")


def test_a_controller_that_does_not_answer_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = handle_on(tmp_path)
    put_on_path(monkeypatch, tmp_path / "bin", "squeue", "import sys; sys.exit('Unable to contact slurm controller')")
    (found,) = SlurmExecutor(SlurmSection(), 2).poll([handle])
    assert found.state == "waiting"


def test_a_job_that_nobody_knows_any_more_is_judged_by_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = handle_on(tmp_path)
    monkeypatch.setenv("SAYS", "")
    (found,) = SlurmExecutor(SlurmSection(), 2).poll([handle])
    assert (found.state, found.words) == ("failed", "it never began; Slurm: gone")
    put_on_path(monkeypatch, tmp_path / "bin", "sacct", "print('OUT_OF_MEMORY')")
    (found,) = SlurmExecutor(SlurmSection(), 2).poll([handle])
    assert found.words == "it never began; Slurm: OUT_OF_MEMORY"


def test_whose_job_died_with_it_is_requeued_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = handle_on(tmp_path)
    monkeypatch.setenv("SAYS", "7_0|NODE_FAIL")
    note_submitted(handle.task.run, submission="s", executor="slurm", job="7_0")
    append(handle.task.run, event_of_ours("started", by="x", submission="s").model_copy(update={"pid": 2**22 + 1}))
    (found,) = SlurmExecutor(SlurmSection(), 2).poll([handle])
    assert found.state == "waiting"
    assert "requeue 7_0" in (tmp_path / "heard").read_text()
    (found,) = SlurmExecutor(SlurmSection(), 0).poll([handle])
    assert found.state == "failed"


def test_jobs_inherit_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "import json, os, sys; json.dump([sys.argv, dict(os.environ)], open(sys.argv[0] + '.json', 'w')); print('9;main')"
    put_on_path(monkeypatch, tmp_path / "bin", "sbatch", says)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("SLURM_CONF", "/etc/x.conf")
    (handle,) = SlurmExecutor(SlurmSection(), 2).submit([handle_on(tmp_path).task])
    assert handle.job == "9_0"
    argv, environ = json.loads((tmp_path / "bin" / "sbatch.json").read_text())
    assert "hush" not in json.dumps([argv, environ])
    assert environ["SLURM_CONF"] == "/etc/x.conf"
    listed = json.loads(Path(argv[-1]).read_text())
    assert listed["runs"][0]["root"] == str(handle.task.run.root)
    assert shlex.join(argv).count(str(handle.task.run.root)) == 0


def test_no_slurm_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(EnvironmentProblem, match="sbatch is not on PATH"):
        SlurmExecutor(SlurmSection(), 2).submit([handle_on(tmp_path).task])


def test_what_sbatch_refuses_is_one_line_with_where_to_mend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "sbatch: error: CPU count per node can not be satisfied\\nsbatch: error: Batch job submission failed\\n"
    put_on_path(monkeypatch, tmp_path / "bin", "sbatch", f"import sys\nsys.stderr.write('{says}')\nsys.exit(1)")
    with pytest.raises(EnvironmentProblem) as refused:
        SlurmExecutor(SlurmSection(), 2).submit([handle_on(tmp_path).task])
    assert str(refused.value) == (
        "sbatch: error: CPU count per node can not be satisfied; sbatch: error: Batch job submission failed; "
        "fix: what [executor.slurm] asks for"
    )
