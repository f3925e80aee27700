"""Stand-in for `run-one`: claims a run folder, takes steps, keeps its place, and leaves a record with one output.

`python fake_run.py ROOT [--steps N] [--seconds S] [--exit CODE] [--silent] --submission NAME`. `--exit` ends like a run
whose input is wrong; `--silent` exits with 0 and leaves nothing. Its "trainer" is a process of its own, as Kohya's is, and
in a session of its own, where no signal to a group of processes reaches it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parents[1]))

from brushset.claims import Claim, claim_run
from brushset.errors import BrushsetError, InputError, Interrupted
from brushset.files import sha256_file, write_atomic, write_json
from brushset.log import silent
from brushset.paths import RunPaths
from brushset.stage_records import StageRecord
from brushset.trees import stop_processes

STAGE = "train"


def stop(signum: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Interrupted(signum)


def steps_done(run: RunPaths) -> int:
    state = run.root / "state.json"
    return int(json.loads(state.read_text())["step"]) if state.is_file() else 0


def train(run: RunPaths, claim: Claim, asked: argparse.Namespace) -> None:
    emit, done = claim.watching(silent), steps_done(run)
    with (run.root / "trace.txt").open("a") as trace:
        trace.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} from {done} at {time.time():.2f}\n")
    print(f"{os.getpid()} goes on after step {done}", flush=True)
    while done < asked.steps:
        time.sleep(asked.seconds)
        done += 1
        emit("train_step", step=done)
        write_json(run.root / "state.json", {"step": done})
    if asked.exit:
        error = InputError("a picture that cannot be read")
        error.exit_code = asked.exit
        raise error
    if not asked.silent:
        publish(run, claim)


def publish(run: RunPaths, claim: Claim) -> None:
    claim.check()
    write_atomic(run.weights / "x.safetensors", f"of {os.getpid()}")
    outputs = {"weights/x.safetensors": sha256_file(run.weights / "x.safetensors")}
    record = StageRecord(stage=STAGE, version=1, digest="d", started_at=0, ended_at=0, outputs=outputs, data={})
    write_json(run.record(STAGE), record.model_dump(mode="json"))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--exit", type=int, default=0)
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("--submission", default="")
    asked = parser.parse_args()
    run = RunPaths(asked.root)
    signal.signal(signal.SIGTERM, stop)
    try:
        with claim_run(run, silent, submission=asked.submission) as claim:
            nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            trainer = subprocess.Popen(["sleep", "600"], start_new_session=True, **nowhere)
            (run.root / "pids").write_text(f"{os.getpid()} {trainer.pid}")
            try:
                train(run, claim, asked)
            finally:
                import psutil

                stop_processes([psutil.Process(trainer.pid)])
    except (BrushsetError, Interrupted) as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
