"""A Slurm cluster of one node that lives in a folder of its own: for tests, without systemd, cgroups or a database.

    python tests/slurm/cluster.py up FOLDER      start it and print the variables that point Slurm's commands at it
    python tests/slurm/cluster.py down FOLDER    stop it

Nothing is written outside the folder: a configuration in /etc/slurm that outlives its daemons would delay every start
of Snakemake by ten seconds. It runs as any user, and beside another cluster, since its ports are free ones.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("sbatch", "srun", "squeue", "scancel", "sinfo", "slurmctld", "slurmd", "munged")
SYSTEM_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin")  # not in the PATH of every user
GPUS = 4
START_SECONDS = 120
STOP_SECONDS = 60

# The node claims more than it has, so that requests of production size fit: memory and processors are counted here,
# not enforced. Finished jobs stay in squeue for MinJobAge seconds, where Snakemake looks for them.
CONFIGURATION = """\
ClusterName=spillover
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=600
DefMemPerCPU=1000
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=32 Boards=1 SocketsPerBoard=1 CoresPerSocket=32 ThreadsPerCore=1 RealMemory=512000 Gres=gpu:h200:{gpus} State=UNKNOWN
PartitionName=gpu Nodes={host} MaxTime=2-00:00:00 State=UP
PartitionName=cpu Nodes={host} Default=YES MaxTime=2-00:00:00 State=UP
"""  # noqa: E501

GPU_CONFIGURATION = """\
AutoDetect=off
NodeName={host} Name=gpu Type=h200 File={folder}/dev/gpu[0-{last}]
"""

# Snakemake's job step removes SLURM_CONF from the environment before it calls srun.
SRUN = """\
#!/bin/sh
SLURM_CONF={conf}
export SLURM_CONF
exec {srun} "$@"
"""


class ClusterError(Exception):
    """The cluster cannot be started; the text says why."""


def find(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_FOLDERS]))


def missing_programs() -> list[str]:
    """Which of Slurm's and MUNGE's programs are not installed (Debian: `apt-get install slurm-wlm munge`)."""
    return [program for program in PROGRAMS if find(program) is None]


class Cluster:
    """One node with two partitions (`cpu`, `gpu`) and four GPUs that are not there.

    A fake GPU must be a character device: with anything else Slurm hands out the jobs but no CUDA_VISIBLE_DEVICES.
    """

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.conf = self.folder / "etc/slurm.conf"

    @property
    def variables(self) -> dict[str, str]:
        """What must be in the environment of everything that talks to this cluster."""
        path = f"{self.folder}/bin{os.pathsep}{os.environ['PATH']}"
        return {"SLURM_CONF": str(self.conf), "PATH": path}

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Write the configuration, start the daemons and wait for an idle node; ClusterError where that fails."""
        if missing := missing_programs():
            raise ClusterError(f"not installed: {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)")
        self._write_files()
        self._munge()
        self._daemon("slurmctld", "-c")
        self._daemon("slurmd")
        if not wait_until(lambda: "idle" in self.command("sinfo", "-h", "-o", "%T"), START_SECONDS):
            raise ClusterError(f"no idle node after {START_SECONDS} s\n{self.logs()}")

    def stop(self) -> None:
        """Cancel what still runs and end the daemons. Does no harm twice, nor to a cluster that never started."""
        if (self.folder / "slurmctld.pid").exists():
            self.command("scancel", "--user", getpass.getuser())
            wait_until(lambda: not self.command("squeue", "-h"), STOP_SECONDS / 2)
        for name in ("slurmd", "slurmctld", "munged"):
            end_process(self.folder / f"{name}.pid")

    def command(self, program: str, *arguments: str) -> str:
        """Standard output of one of Slurm's commands; empty where it fails."""
        environment = os.environ | self.variables
        done = subprocess.run([find(program), *arguments], env=environment, capture_output=True, text=True, timeout=30)
        return done.stdout.strip()

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        parts = []
        for path in sorted((self.folder / "log").glob("*.log")):
            parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(parts)

    def _write_files(self) -> None:
        for name in ("etc", "bin", "dev", "log", "state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # MUNGE refuses a socket in a folder that others may write to
        controller_port, node_port = free_ports(2)
        values = {
            "folder": self.folder,
            "host": socket.gethostname().split(".")[0],
            "user": getpass.getuser(),
            "controller_port": controller_port,
            "node_port": node_port,
            "gpus": GPUS,
            "last": GPUS - 1,
        }
        self.conf.write_text(CONFIGURATION.format(**values))
        (self.folder / "etc/gres.conf").write_text(GPU_CONFIGURATION.format(**values))
        for index in range(GPUS):
            device = self.folder / f"dev/gpu{index}"
            if not device.is_symlink():
                device.symlink_to("/dev/null")
        wrapper = self.folder / "bin/srun"
        wrapper.write_text(SRUN.format(conf=self.conf, srun=find("srun")))
        wrapper.chmod(0o755)

    def _munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._daemon(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={self.folder}/munge.sock",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={self.folder}/munge.seed",
        )

    def _daemon(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [find(program), *arguments],
            env=os.environ | self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
        )
        if done.returncode:
            raise ClusterError(f"{program} did not start: {(done.stdout + done.stderr).strip()}\n{self.logs()}")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether `holds` became true within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.1)
    return False


def end_process(pid_file: Path) -> None:
    """End the daemon whose id stands in `pid_file`: politely, then by force."""
    try:
        pid = int(pid_file.read_text())
    except (FileNotFoundError, ValueError):
        return
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            break
        if wait_until(lambda: not is_running(pid), STOP_SECONDS / 4):
            break
    pid_file.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    cluster = Cluster(args.folder)
    if args.action == "down":
        cluster.stop()
        return
    try:
        cluster.start()
    except ClusterError as error:
        cluster.stop()
        raise SystemExit(f"No Slurm cluster: {error}") from None
    print(f"export SLURM_CONF={cluster.conf}\nexport PATH={cluster.folder}/bin:$PATH")


if __name__ == "__main__":
    main()
