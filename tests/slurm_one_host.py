"""A real Slurm of two virtual nodes with a made-up GPU each, on this machine, from Debian's packages.

All it has lies in one folder; nothing of the system's own configuration is touched. To set one up by hand and leave it:
`sudo python tests/slurm_one_host.py FOLDER`, after
`RUNLEVEL=1 apt-get install --no-install-recommends slurmctld slurmd slurm-client munge`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "scancel")
NODES = ("n1", "n2")
_PATIENCE_S = 30.0
_CONFIG = """\
ClusterName=brushset
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdTimeout=8
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
JobRequeue=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=requeue_delay=1,sched_interval=5,bf_interval=3
KillWait=5
InactiveLimit=0
MinJobAge=300
GresTypes=gpu
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=17001-17002 CPUs={cpus} RealMemory=1000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES:4
"""


def why_not() -> str:
    """Why it cannot be set up here; empty where it can."""
    missing = [name for name in PROGRAMS if not _program(name)]
    if missing:
        return f"no Slurm here: {', '.join(missing)} not installed (Debian's slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "a Slurm of our own is set up by root alone"


@contextlib.contextmanager
def slurm_of_two_nodes(root: Path) -> Iterator[None]:
    """The cluster, idle, with SLURM_CONF set; nothing of it is left afterwards."""
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(_write_config(root))
    try:
        _start(root)
        yield
    finally:
        for node in NODES:
            lose_node(node)
        for name in ("slurmctld", "munged"):
            _kill_tree(root / f"{name}.pid")
        del os.environ["SLURM_CONF"]
        if before is not None:
            os.environ["SLURM_CONF"] = before


def lose_node(node: str) -> None:
    """As when a machine is gone: `kill -9` of its slurmd and of all that runs there."""
    root = Path(os.environ["SLURM_CONF"]).parent
    _kill_tree(root / f"slurmd-{node}.pid")
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "slurmstepd" and _node_of(process) == node:
            _kill_all(process)


def start_node(node: str) -> None:
    """A node comes up, or comes back."""
    subprocess.run([_program("slurmd"), "-N", node], check=True, capture_output=True, timeout=_PATIENCE_S)


def _write_config(root: Path) -> Path:
    for folder in ("state", "log", "gpu", *(f"spool/{node}" for node in NODES)):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number in range(2):
        if not (device := root / "gpu" / f"gpu{number}").exists():
            os.mknod(device, 0o020666, os.makedev(1, 3))
    lines = [f"NodeName={node} Name=gpu File={root}/gpu/gpu{at}" for at, node in enumerate(NODES)]
    (root / "gres.conf").write_text("\n".join(lines) + "\n")
    host, cpus = socket.gethostname(), max(2, psutil.cpu_count() or 2)
    (root / "slurm.conf").write_text(_CONFIG.format(root=root, host=host, cpus=cpus))
    return root / "slurm.conf"


def _start(root: Path) -> None:
    key = root / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    names = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "log/munged.log", "seed-file": "munge.seed"}  # fmt: skip
    words = [f"--{name}={root / file}" for name, file in names.items()]
    for argv in ([_program("munged"), "--force", *words], [_program("slurmctld"), "-c"]):
        subprocess.run(argv, check=True, capture_output=True, timeout=_PATIENCE_S)
    for node in NODES:
        start_node(node)
    deadline = time.monotonic() + _PATIENCE_S
    while "".join(sorted(_states())) != "idleidle":
        if time.monotonic() > deadline:
            raise RuntimeError(f"Slurm did not come up: {_states()}; logs: {root}/log")
        time.sleep(0.2)


def _states() -> list[str]:
    argv = ["sinfo", "-h", "-N", "-o", "%T"]
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    return answer.stdout.split()


def _node_of(stepd: psutil.Process) -> str:
    """The node that a step runs on: it writes to that node's log."""
    with contextlib.suppress(psutil.Error):
        names = [Path(file.path).name for file in stepd.open_files()]
        return next((name[len("slurmd-") : -len(".log")] for name in names if name.startswith("slurmd-")), "")
    return ""


def _kill_tree(pid_file: Path) -> None:
    if pid_file.is_file() and (text := pid_file.read_text().strip()):
        with contextlib.suppress(psutil.NoSuchProcess):
            _kill_all(psutil.Process(int(text)))
    pid_file.unlink(missing_ok=True)


def _kill_all(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [*process.children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""


if __name__ == "__main__":
    folder = Path(sys.argv[1]).absolute()
    os.environ["SLURM_CONF"] = str(_write_config(folder))
    _start(folder)
    print(f"export SLURM_CONF={folder}/slurm.conf")
