# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""A real, throw-away Slurm cluster of several nodes on one machine, from Debian's packages.

munged, slurmctld and one slurmd a node, each node in its own UTS, mount and PID namespace: it has its own host name and
/etc/hosts, and killing its first process is the death of the whole node. All sockets are on 127.0.0.1; there is no
accounting, as on many small clusters. Every process is a child of this one and dies with it; needs root.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from memformer.processes.ports import free_port

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged", "unshare", "setpriv")
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
GRACE_SECONDS = 30  # from the warning of a preemption to the kill
CREDENTIAL_SECONDS = 5  # the least that Slurm takes; a requeued job waits this long before it starts again


def why_not() -> str | None:
    """Why no cluster can be started here, with the mend; None if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SYSTEM_PATH) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} missing): make slurm installs it (as root)"
    if os.geteuid() != 0:
        return "a Slurm cluster of several nodes on one machine needs root: run the tests as root"
    probe = subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True, timeout=20)
    if probe.returncode:
        return f"no namespaces can be made here ({probe.stderr.decode().strip()}): run where unshare works"
    return None


def wait_until(condition: Callable[[], object], seconds: float, what: str, poll: float = 0.2) -> None:
    """Waits for a condition.

    Raises:
        AssertionError: It did not hold in time; `what` names it.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:g} s still not: {what}"
        time.sleep(poll)


class Cluster:
    """A cluster with partitions `main` (default, preemptible) and `urgent` (preempts main).

    Args:
        nodes: Number of nodes, named node1, node2, ...
        cpus: CPUs that each node claims to have.
    """

    def __init__(self, nodes: int = 3, cpus: int = 4) -> None:
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.cpus = cpus
        self.root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: it holds Unix sockets
        self.root.chmod(0o755)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))},
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:{SYSTEM_PATH}",
        }

    def start(self) -> None:
        """Starts all daemons and waits until every node is idle.

        Raises:
            AssertionError: It did not come up in time; the controller's last words are in the message.
        """
        for name in ("log", "state", "spool", "munge"):
            (self.root / name).mkdir(mode=0o755)
        key = self.root / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        ports = [free_port() for _ in range(len(self.nodes) + 1)]
        (self.root / "slurm.conf").write_text(self._configuration(ports))
        names = ["slurmctl", *self.nodes, "localhost", os.uname().nodename]
        (self.root / "hosts").write_text("".join(f"127.0.0.1 {name}\n" for name in names))
        munge = self.root / "munge"
        files = [f"--{what}={munge}/{what.split('-')[0]}" for what in ("socket", "key-file", "pid-file", "seed-file")]
        self._spawn("munged", ["munged", "--foreground", "--force", *files, f"--log-file={self.root}/log/munge"])
        wait_until((munge / "socket").exists, 10, "munged listens", poll=0.05)
        self.start_controller(fresh=True)
        for node in self.nodes:
            self.start_node(node)
        try:
            wait_until(lambda: self.idle_nodes() == self.nodes, 30, f"{len(self.nodes)} nodes idle")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.log('slurmctld')[-2000:]}") from None

    def stop(self) -> None:
        """Kills every process of the cluster and removes its files."""
        for name in list(self.daemons):
            self.kill(name)
        shutil.rmtree(self.root, ignore_errors=True)

    def start_controller(self, fresh: bool = False) -> None:
        """Starts slurmctld, with the jobs it knew before unless `fresh`, and waits until it answers."""
        command = ["slurmctld", "-D", *(["-c"] if fresh else []), "-f", str(self.root / "slurm.conf")]
        self._spawn("slurmctld", self._on_host("slurmctl", command))
        wait_until(lambda: "is UP" in self.client("scontrol", "ping", check=False), 20, "slurmctld answers")

    def stop_controller(self) -> None:
        """A controller outage: it saves its state and leaves; jobs run on."""
        self.kill("slurmctld", signal.SIGTERM)

    def start_node(self, node: str) -> None:
        """Starts (again) the slurmd of a node."""
        (self.root / "spool" / node).mkdir(exist_ok=True)
        self._spawn(node, self._on_host(node, ["slurmd", "-D", "-N", node, "-f", str(self.root / "slurm.conf")]))

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Ends a daemon, or a node with all that runs on it, and waits for its end."""
        daemon = self.daemons.pop(name)
        # unshare's child is the first process of the namespaces; its end is that of every other there
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        target = int(children[0]) if children and name != "munged" else daemon.pid
        if how == signal.SIGTERM and name == "slurmctld":
            inner = Path(f"/proc/{target}/task/{target}/children").read_text().split()
            target = int(inner[0]) if inner else target
        os.kill(target, how)
        try:
            daemon.wait(timeout=20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(timeout=20)

    def client(self, *command: str, check: bool = True, cwd: Path | None = None, timeout: float = 60) -> str:
        """Runs a command as a user of the cluster and returns its stdout.

        Raises:
            AssertionError: `check`, and it failed; its stderr is in the message.
        """
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout

    def idle_nodes(self) -> list[str]:
        """Names of the nodes that are idle."""
        lines = self.client("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N %t", check=False).splitlines()
        return sorted(line.split()[0] for line in lines if line.endswith(" idle"))

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, NodeList, ExitCode, Reason, ..."""
        shown = self.client("scontrol", "-o", "show", "job", job_id, check=False)
        return dict(re.findall(r"(?:^|\s)([A-Za-z/:]+)=(\S*)", shown))

    def state(self, job_id: str) -> str:
        """The job's state; empty while the controller is away."""
        return self.job(job_id).get("JobState", "")

    def wait_for(self, job_id: str, *states: str, seconds: float = 120) -> None:
        """Waits until a job is in one of the states."""
        wait_until(lambda: self.state(job_id) in states, seconds, f"job {job_id} is {' or '.join(states)}")

    def log(self, name: str) -> str:
        """The log of a daemon."""
        return (self.root / "log" / name).read_text(errors="replace")

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            # setpriv: when the tests are killed, so is the cluster
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _on_host(self, name: str, command: list[str]) -> list[str]:
        """The command on a host of that name. bash stays as the first process, to collect orphans."""
        script = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; "$@" & wait $!'
        namespaces = ["unshare", "--uts", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
        return [*namespaces, "bash", "-ec", script, "host", name, str(self.root / "hosts"), *command]

    def _configuration(self, ports: list[int]) -> str:
        root = self.root
        nodes = "\n".join(
            f"NodeName={node} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} RealMemory=8000 State=UNKNOWN"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        )
        return f"""\
ClusterName=test
SlurmctldHost=slurmctl(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire={CREDENTIAL_SECONDS}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld
SlurmdLogFile={root}/log/%n
SlurmctldDebug=verbose
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
MessageTimeout=5
SlurmctldTimeout=10
SlurmdTimeout=5
TCPTimeout=2
UnkillableStepTimeout=20
PropagateResourceLimits=NONE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={GRACE_SECONDS}
PartitionName=urgent Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
