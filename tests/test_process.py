"""Claims about running children: nothing lost, nothing left behind, no secrets handed on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from brushset.errors import EnvironmentProblem, Interrupted, TrainerFailed
from brushset.failure import explain_failure, last_words
from brushset.process import child_env, process_file, run_command, stop_orphan

LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print("launched", child.pid, flush=True)
sys.exit(child.wait())
"""
SLEEPER = "import time; print('trainer here', flush=True); time.sleep(120)"


def run(
    code: str, folder: Path, *args: str, on_line: Callable[[str], None] = lambda _: None, **more: float
) -> list[str]:
    seen: list[str] = []

    def keep(line: str) -> None:
        seen.append(line)
        on_line(line)

    argv = [sys.executable, "-c", textwrap.dedent(code), *args]
    run_command(
        argv, cwd=folder, env=child_env({"PYTHONUNBUFFERED": "1"}), log_path=folder / "a.log", on_line=keep, **more
    )
    return seen


def wait_until(holds: Callable[[], bool], limit_s: float = 20.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_both_streams_reach_the_log_and_the_listener_line_by_line(tmp_path: Path) -> None:
    seen = run("import sys; print('out'); print('err', file=sys.stderr)", tmp_path)
    assert sorted(seen) == ["err", "out"]
    assert sorted((tmp_path / "a.log").read_text().split()) == ["err", "out"]


def test_each_state_of_a_progress_bar_is_a_line(tmp_path: Path) -> None:
    seen = run(r"import sys; sys.stderr.write('\rsteps 1\rsteps 2\n\nend')", tmp_path)
    assert seen == ["steps 1", "steps 2", "end"]


def test_the_latest_state_of_a_progress_bar_is_not_held_back_until_the_next(tmp_path: Path) -> None:
    code = """
        import sys, time
        sys.stderr.write(r"steps: 50%|#| 1/2 [00:17<00:17, 17.99s/it, avr_loss=1.26]")
        sys.stderr.flush()
        time.sleep(60)
    """

    def stop(line: str) -> None:
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt, match=r"avr_loss=1\.26"):
        run(code, tmp_path, on_line=stop, timeout_s=20)


def test_bytes_that_are_no_utf8_do_not_stop_anything(tmp_path: Path) -> None:
    seen = run(r"import sys; sys.stdout.buffer.write(b'a\xff\xfeb\n'); print('\u6f22')", tmp_path)
    assert seen == ["a\\xff\\xfeb", "漢"]


def test_paths_with_spaces_quotes_and_newlines_are_only_data(tmp_path: Path) -> None:
    folder = tmp_path / "a b'c\"d\ne $(touch x)"
    folder.mkdir()
    assert run("import os, sys; print(sys.argv[1] == os.getcwd())", folder, str(folder)) == ["True"]
    assert (folder / "a.log").is_file()


def test_failure_names_exit_code_cause_log_and_command(tmp_path: Path) -> None:
    with pytest.raises(TrainerFailed) as caught:
        run("print('hello'); raise ValueError('odd value')", tmp_path, "an arg")
    message, detail = str(caught.value), caught.value.detail
    assert message == f"exit code 1: ValueError: odd value; log: {tmp_path / 'a.log'}"
    assert "hello" in detail
    assert "'an arg'" in detail
    assert str(tmp_path / "a.log") in detail


def test_only_the_last_lines_are_kept_and_the_log_has_all(tmp_path: Path) -> None:
    with pytest.raises(TrainerFailed) as caught:
        run("for i in range(5000): print('line', i)\nraise SystemExit(3)", tmp_path)
    assert caught.value.code == 3
    assert "line 4999" in caught.value.detail
    assert "line 100\n" not in caught.value.detail
    assert len((tmp_path / "a.log").read_text().splitlines()) == 5000


def test_a_command_that_does_not_exist_is_an_environment_problem(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="no-such-program: cannot be started"):
        run_command(["no-such-program"], cwd=tmp_path, env={}, log_path=tmp_path / "a.log", on_line=print)


def test_what_the_listener_raises_stops_the_whole_tree(tmp_path: Path) -> None:
    pids: list[int] = []

    def stop(line: str) -> None:
        if line.startswith("launched"):
            pids.append(int(line.split()[1]))
        if line == "trainer here":
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        run(LAUNCHER, tmp_path, SLEEPER, on_line=stop)
    assert pids
    assert is_gone(pids[0])
    assert not process_file(tmp_path / "a.log").exists()


def test_a_timeout_stops_the_whole_tree(tmp_path: Path) -> None:
    pids: list[int] = []
    with pytest.raises(TrainerFailed, match="took longer than 2 s"):
        run(
            LAUNCHER, tmp_path, SLEEPER, timeout_s=2,
            on_line=lambda line: pids.append(int(line.split()[1])) if line.startswith("launched") else None,
        )  # fmt: skip
    assert is_gone(pids[0])


def test_a_trainer_deaf_to_term_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brushset.trees.stop_processes.__defaults__", (0.5,))
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(120)"

    def stop(line: str) -> None:
        if line == "deaf":
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(deaf, tmp_path, on_line=stop)
    assert time.monotonic() - started < 20


def test_a_launcher_killed_from_outside_takes_its_trainer_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brushset.process._DRAIN_S", 1.0)
    pids: list[int] = []

    def kill_launcher(line: str) -> None:
        if line.startswith("launched"):
            pids.append(int(line.split()[1]))
        if line == "trainer here":
            os.kill(psutil.Process(pids[0]).ppid(), signal.SIGKILL)

    # the trainer is found only once the tree has been looked at
    slow_sleeper = "import time; time.sleep(1.5); " + SLEEPER
    with pytest.raises(TrainerFailed, match="killed by SIGKILL") as caught:
        run(LAUNCHER, tmp_path, slow_sleeper, on_line=kill_launcher)
    assert caught.value.code is None
    assert is_gone(pids[0])


def test_sigterm_to_a_parent_that_raises_in_its_handler_leaves_nobody(tmp_path: Path) -> None:
    parent = tmp_path / "parent.py"
    parent.write_text(
        textwrap.dedent(f"""
        import signal, sys
        from pathlib import Path
        from brushset.errors import Interrupted
        from brushset.process import child_env, run_command
        def handler(number, frame):
            raise Interrupted(number)
        signal.signal(signal.SIGTERM, handler)
        try:
            run_command([sys.executable, "-c", {LAUNCHER!r}, {SLEEPER!r}], cwd=Path("."), env=child_env({{}}),
                        log_path=Path("a.log"), on_line=lambda line: print(line, flush=True))
        except Interrupted as error:
            sys.exit(error.exit_code)
        """)
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen([sys.executable, parent], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        trainer = int(child.stdout.readline().split()[1])
        assert child.stdout.readline().strip() == "trainer here"
        child.terminate()
        assert child.wait(30) == 143
    assert is_gone(trainer)


def test_an_orphan_of_a_killed_parent_is_recognised_and_stopped(tmp_path: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from brushset.process import child_env, run_command
        run_command([sys.executable, "-c", {LAUNCHER!r}, {SLEEPER!r}], cwd=Path("."), env=child_env({{}}),
                    log_path=Path("a.log"), on_line=lambda line: print(line, flush=True))
        """
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    argv = [sys.executable, "-c", textwrap.dedent(code)]
    record = process_file(tmp_path / "a.log")
    with subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        trainer = int(parent.stdout.readline().split()[1])
        assert wait_until(lambda: str(trainer) in record.read_text())
        parent.kill()
    assert not is_gone(trainer)
    assert trainer in stop_orphan(record)
    assert wait_until(lambda: is_gone(trainer))
    assert not record.exists()
    assert stop_orphan(record) == []


def test_a_process_that_only_reuses_the_id_is_left_alone(tmp_path: Path) -> None:
    record = tmp_path / "a.process.json"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        entry = {"pid": stranger.pid, "create_time": psutil.Process(stranger.pid).create_time() - 100}
        record.write_text(json.dumps({"processes": [entry]}))
        assert stop_orphan(record) == []
        assert stranger.poll() is None
        stranger.kill()


def test_the_environment_is_an_allow_list_without_secrets() -> None:
    outside = {
        "PATH": "/bin", "HF_HOME": "/hf", "HF_TOKEN": "hf_secret", "CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "2",
        "AWS_SECRET_ACCESS_KEY": "x", "WANDB_API_KEY": "x", "HTTPS_PROXY": "http://me:pw@proxy", "SD_TOKEN": "x",
        "LC_ALL": "C", "PYTHONPATH": "/elsewhere", "SD_SCRIPTS_DIR": "/sd",
    }  # fmt: skip
    kept = child_env({"EXTRA": "1"}, outside)
    assert kept == {
        "PATH": "/bin", "HF_HOME": "/hf", "CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "2", "LC_ALL": "C",
        "SD_SCRIPTS_DIR": "/sd", "EXTRA": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "code", "status", "cause"),
    [
        (["torch.OutOfMemoryError: CUDA out of memory. Tried"], 1, "exit code 1", "out of GPU memory"),
        (["OSError: [Errno 28] No space left on device"], 1, "exit code 1", "the disk is full"),
        (
            ["AssertionError: caption file is empty: a.txt", "subprocess.CalledProcessError: Command '[…]' returned non-zero exit status 7."],
            1, "exit code 7", "AssertionError: caption file is empty: a.txt",
        ),
        (["subprocess.CalledProcessError: Command '[…]' died with <Signals.SIGKILL: 9>."], 1, "killed by SIGKILL", "main memory"),
        (["voluptuous.error.MultipleInvalid: extra keys not allowed"], 1, "exit code 1", "MultipleInvalid: extra keys"),
        (["train_network.py: error: unrecognized arguments: --x"], 2, "exit code 2", "does not know an option"),
        (["something odd"], 9, "exit code 9", 'last line "something odd"'),
        ([], -11, "killed by SIGSEGV", "it said nothing"),
    ],
)  # fmt: skip
def test_a_failure_is_explained_from_the_log(lines: list[str], code: int, status: str, cause: str) -> None:
    found = explain_failure(lines, code)
    assert found[0] == status
    assert cause in found[1]


ENDED = """E1123 05:59:52 30284 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: {code}) local_rank: {rank}
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train_network.py FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-23_05:59:52
  host      : localhost
  rank      : {other} (local_rank: {other})
  exitcode  : -15 (pid: 30286)
  error_file: <N/A>
  traceback : Signal 15 (SIGTERM) received by PID 30286
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-23_05:59:52
  host      : localhost
  rank      : {rank} (local_rank: {rank})
  exitcode  : {code} (pid: 30287)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 30287
============================================================
"""


@pytest.mark.parametrize(
    ("said", "rank", "code", "status", "cause"),
    [
        (["[rank0]: Traceback (most recent call last):", "[rank0]: ValueError: captions are missing",
          "[rank1]: RuntimeError: NCCL error: remote process exited"], 0, 1, "exit code 1", "ValueError: captions are missing"),
        (["[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried", "[rank0]: RuntimeError: NCCL error: x"],
         1, 1, "exit code 1", "out of GPU memory"),
        (["[rank0]: RuntimeError: [pair.cc:547] Connection closed by peer [127.0.0.1]:9623"], 1, -9, "killed by SIGKILL",
         "main memory ran out"),
    ],
)  # fmt: skip
def test_of_several_processes_the_first_to_fail_is_explained(
    said: list[str], rank: int, code: int, status: str, cause: str
) -> None:
    """The lines are what torch 2.10 wrote when one of two processes was let die."""
    lines = [*said, *ENDED.format(rank=rank, other=1 - rank, code=code).splitlines()]
    assert lines[-1] == "=" * 60
    found = explain_failure(lines, 1)
    assert found[0] == status
    assert cause in found[1]
    assert "rank" not in found[1]
    assert last_words(lines, 40) == said


def test_a_rank_before_the_last_words_is_not_part_of_them() -> None:
    assert explain_failure(["[rank0]: ValueError: no captions"], 1) == ("exit code 1", "ValueError: no captions")
