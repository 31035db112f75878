"""A real SLURM on this machine alone: a controller and two nodes with one CPU each, on loopback, all of this user."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from robflat_bench.api import Exit, Launcher

PACKAGES = ("slurm-wlm", "munge")
NODES = ("n1", "n2")
DAEMONS = ("munged", "slurmctld", "slurmd")
SERVING = ("idle", "mixed", "allocated", "completing")
PATH = f"{os.environ['PATH']}:/usr/sbin"

CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE PriorityTier=2
"""


class Absent(Exception):
    """SLURM is not on this machine and cannot be installed; the text says why."""


def install() -> None:
    """Install Debian's packages where they are absent and this user is root."""
    if all(shutil.which(name, path=PATH) for name in DAEMONS):
        return
    words = ["apt-get", "install", "-y", "-qq", "-o=DPkg::Lock::Timeout=120", "--no-install-recommends", *PACKAGES]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Absent(f"SLURM is not installed; on Debian: sudo {' '.join(words)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], words):
        done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Absent(f"SLURM cannot be installed: {done.stderr.strip().splitlines()[-1:]}")


class OneMachine:
    """Starts and ends the daemons in a folder; `more` lines of configuration.

    `environment` is what a user's commands need.
    """

    def __init__(self, folder: Path, more: str = "") -> None:
        self.folder, self.more = folder, more
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> OneMachine:
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, mode=0o755)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(256))
        key.chmod(0o400)
        names = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser()}
        conf = CONF.format(folder=self.folder, ports=free_ports(1 + len(NODES)), **names)
        (self.folder / "slurm.conf").write_text(conf + self.more)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        paths = [f"--{option}={self.folder}/munge/{name}" for option, name in files.items()]
        try:
            self._start("munged", "munged", "--foreground", "--force", "--num-threads=2", *paths)
            until((self.folder / "munge" / "socket").exists)
            self._start("slurmctld", "slurmctld", "-D", "-c")
            for node in NODES:
                self.start_node(node)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End every job, then every daemon."""
        if "slurmctld" in self._daemons:
            self.command("scancel", "--me")
            with contextlib.suppress(TimeoutError):
                until(lambda: not self.command("squeue", "--noheader"), 20)
        self._kill(pid for node in NODES for pid in self._processes(node))
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(5)
            daemon.kill()
            daemon.wait()

    def command(self, *words: str) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    def start_node(self, node: str) -> None:
        """Start a node, and wait until SLURM has it back, which may start a waiting job there in the same moment."""
        self._start(node, "slurmd", "-D", "-N", node)
        until(lambda: self.command("sinfo", "--noheader", f"--nodes={node}", "--format=%T") in SERVING, 60)

    def kill_node(self, node: str, with_jobs: bool = True) -> None:
        """End a node as a power failure does, or as a lost network, behind which jobs go on. SLURM notices at once."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        if with_jobs:
            self._kill(self._processes(node))
        self.command("scontrol", "update", f"NodeName={node}", "State=down", "Reason=killed")

    def start_requeued(self, id: str) -> None:
        """Start a job that SLURM has put back into the queue, where it would wait two minutes.

        A node refuses to start a job again within the second of its end ("job credential revoked").
        """
        until(lambda: self.command("squeue", "--noheader", f"--jobs={id}", "--format=%T") == "PENDING")
        self.command("scontrol", "update", f"JobId={id}", "StartTime=now+2")

    def settle(self) -> None:
        """No job in the queue, and every node idle."""
        self.command("scancel", "--me")
        until(lambda: not self.command("squeue", "--noheader"))
        for node in NODES:
            if node not in self._daemons:
                self.start_node(node)

    def job_processes(self, **variables: str) -> list[int]:
        """The processes of this SLURM's jobs whose environment has these values."""
        return processes_with(**self.environment, **variables)

    def _processes(self, node: str) -> Iterator[int]:
        """The processes of a node's jobs, after the process of SLURM that watches each, whose environment is empty."""
        jobs = self.job_processes(SLURMD_NODENAME=node)
        parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in jobs}
        yield from (pid for pid in parents if Path(f"/proc/{pid}/comm").read_text() == "slurmstepd\n")
        yield from jobs

    def _kill(self, pids: Iterator[int]) -> None:
        for pid in list(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self, name: str, program: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [str(shutil.which(program, path=PATH)), *words],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def until(true: Callable[[], object], seconds: float = 120) -> None:
    """Wait for a condition; TimeoutError after so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.2)


def ends(launcher: Launcher, count: int, seconds: float = 60) -> dict[str, Exit]:
    """The next ends, by the last part of the job's name."""
    found: dict[str, Exit] = {}
    end = time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < end, f"{found} and then nothing; {launcher.standings()}"
        found |= launcher.wait(1.0)
    return {name.rpartition("-")[2]: how for name, how in found.items()}


def processes_with(**variables: str) -> list[int]:
    """The processes whose environment has these values."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted <= {*(folder / "environ").read_bytes().split(b"\0")}:
                found.append(int(folder.name))
    return found


def free_ports(count: int) -> list[int]:
    """So many ports of loopback that nobody uses."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
