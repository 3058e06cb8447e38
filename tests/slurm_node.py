"""A Slurm of one node on this machine, with a fake GPU: what the tests submit to. Ends with the command it runs.

    python tests/slurm_node.py FOLDER COMMAND...    run a command with SLURM_CONF set; logs stay in FOLDER

Needs Debian's munge, slurmctld, slurmd and slurm-client, and no more rights than the user's own: every daemon runs as
the one who starts it, keeps its state in the folder, listens on a free port and is stopped at the end.
"""

from __future__ import annotations

import getpass
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from daemons import PATH, answer, daemon, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "sinfo")

# The node says that it has more than the machine, so that jobs need not queue.
CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
MessageTimeout=60
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=32000 Gres=gpu:1 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the programs that this machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


@contextmanager
def slurm(folder: Path, cpus: int = 4) -> Iterator[dict[str, str]]:
    """Start munge, slurmctld and slurmd; yield the environment in which sbatch and squeue reach them.

    Raises
    ------
    RuntimeError
        The node does not become idle; the message holds the daemons' last lines.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # munge refuses a folder that others may write to
    for name in ("state", "spool"):
        (folder / name).mkdir(exist_ok=True)
    words = {"folder": folder, "user": getpass.getuser(), "host": socket.gethostname(), "cpus": cpus}
    (folder / "slurm.conf").write_text(CONFIG.format(**words, ports=_free_ports(2)))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    with ExitStack() as stack:
        munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
        munged += [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "seed", "log")]
        stack.enter_context(daemon(munged, folder, environment))
        wait_until(lambda: (folder / "munge.socket").exists(), folder, "munge opens no socket")
        stack.enter_context(daemon(["slurmctld", "-D"], folder, environment))
        stack.enter_context(daemon(["slurmd", "-D"], folder, environment))
        wait_until(
            lambda: answer(["sinfo", "--noheader", "--format=%t"], environment) == "idle",
            folder,
            "the node does not become idle",
        )
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=False)
            wait_until(lambda: not answer(["squeue", "--noheader"], environment), folder, "a job does not end")


def _free_ports(count: int) -> list[int]:
    """Return ports on which nothing listens, from below those that the system gives to connections."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            probe, port = stack.enter_context(socket.socket()), random.randrange(10_000, 32_000)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found


if __name__ == "__main__":
    if lacking := missing():
        sys.exit(f"no {', '.join(lacking)} on this machine; install munge, slurmctld, slurmd and slurm-client")
    with slurm(Path(sys.argv[1])) as environment:
        sys.exit(subprocess.run(sys.argv[2:], env=environment, check=False).returncode)
