"""A real Slurm on this machine: munged, slurmctld and one slurmd for each of a few made-up nodes.

Every node has its own host name (a UTS namespace) but shares processes and memory with the others;
CPUs and GPUs are claimed, not real. Needs root and Debian's slurm-wlm and munge. Everything lives
in one folder, and only daemons and processes of this folder are ended.
"""
import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

NEEDED = ["munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare", "mpirun"]

CONFIG = """
ClusterName=moebatch
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={base}/munge.sock,cred_expire=5
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
TmpFS={base}/tmp/%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
SlurmdTimeout={slurmd_timeout}
MessageTimeout=10
GresTypes=gpu
NodeName=n[1-{nodes}] NodeHostname=n[1-{nodes}] NodeAddr=127.0.0.1 Port=[{first}-{last}] \
CPUs={cpus} RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP
"""


def why_not():
    """Why no cluster can be started here, or None."""
    missing = [x for x in NEEDED if not shutil.which(x)]
    if missing:
        return "not installed: " + " ".join(missing) + " (scripts/bootstrap.sh --slurm)"
    if os.geteuid() != 0:
        return "daemons of made-up nodes need root"
    if subprocess.run(["unshare", "--uts", "true"], check=False, capture_output=True).returncode:
        return "this container does not allow host names of its own (unshare --uts)"
    return None


def free_ports(count):
    """The first of `count` neighbouring ports that nobody listens on."""
    for first in range(26900, 32000, count):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                sock = stack.enter_context(socket.socket())
                sock.bind(("127.0.0.1", port))
            return first
    raise OSError("no free ports")


class Cluster:
    def __init__(self, base, nodes=3, cpus=4, gpus=2, memory=20000, slurmd_timeout=10):
        self.base, self.nodes = pathlib.Path(base), nodes
        self.env = {**os.environ, "SLURM_CONF": str(self.base / "slurm.conf"),
                    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        for name in [k for k in self.env if k.startswith(("SLURM_JOB", "SBATCH_"))]:
            del self.env[name]
        port = free_ports(nodes + 1)
        self.base.mkdir(parents=True, exist_ok=True)
        self.base.chmod(0o755)
        for folder in ["state", "spool", "tmp"]:
            (self.base / folder).mkdir()
        for i in range(1, nodes + 1):
            (self.base / f"spool/n{i}").mkdir()
            (self.base / f"tmp/n{i}").mkdir()
        (self.base / "slurm.conf").write_text(CONFIG.format(
            base=base, host=socket.gethostname().split(".")[0], port=port, first=port + 1,
            last=port + nodes, nodes=nodes, cpus=cpus, gpus=gpus, memory=memory,
            slurmd_timeout=slurmd_timeout), encoding="ascii")
        # GPUs without a device file are not counted.
        for i in range(gpus):
            subprocess.run(["mknod", self.base / f"gpu{i}", "c", "1", "3"], check=True)
        (self.base / "gres.conf").write_text(
            f"NodeName=n[1-{nodes}] Name=gpu File={base}/gpu[0-{gpus - 1}]\n", encoding="ascii")
        (self.base / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n", encoding="ascii")

    def up(self):
        base = self.base
        (base / "munge.key").write_bytes(os.urandom(1024))
        (base / "munge.key").chmod(0o400)
        subprocess.run(["munged", f"--key-file={base}/munge.key", f"--socket={base}/munge.sock",
                        f"--pid-file={base}/munged.pid", f"--log-file={base}/munged.log",
                        f"--seed-file={base}/munge.seed"], check=True)
        self.tool("slurmctld", "-c", "-f", base / "slurm.conf")
        for i in range(1, self.nodes + 1):
            self.node_up(f"n{i}")
        self.wait(lambda: self.tool("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() ==
                  [f"n{i}" for i in range(1, self.nodes + 1)], 30, "nodes are not idle")

    def node_up(self, node):
        self.tool("unshare", "--uts", "sh", "-c",
                  f"hostname {node}; exec slurmd -N {node} -f {self.base}/slurm.conf")

    def tool(self, *command, check=True):
        done = subprocess.run([str(x) for x in command], env=self.env, capture_output=True,
                              text=True, check=False, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    @staticmethod
    def wait(ready, limit, what):
        end = time.monotonic() + limit
        while not ready():
            if time.monotonic() > end:
                raise TimeoutError(f"{what} after {limit} s")
            time.sleep(0.1)

    def processes(self, **variables):
        """pids of processes whose environment has our slurm.conf and these variables."""
        wanted = {f"{k}={v}".encode() for k, v in variables.items()}
        wanted.add(f"SLURM_CONF={self.env['SLURM_CONF']}".encode())
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                        found.append(int(entry.name))
        return found

    def ranks(self, job=None):
        """pids of moebatch, of one job or of all."""
        found = []
        for pid in self.processes(**({"SLURM_JOB_ID": job} if job else {})):
            with contextlib.suppress(OSError):
                name = pathlib.Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip()
                found += [pid] if name == "moebatch" else []
        return found

    def pid(self, daemon):
        with contextlib.suppress(OSError, ValueError):
            return int((self.base / f"{daemon}.pid").read_text(encoding="ascii"))
        return None

    def node_dies(self, node):
        """Its daemon and all its tasks, at once, without a word."""
        victims = [self.pid(f"slurmd.{node}"), *self.processes(SLURMD_NODENAME=node)]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.kill(pid, signal.SIGKILL)
        return len(victims) - 1

    def down(self):
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            if not self.pid("slurmctld"):
                raise RuntimeError("never came up")
            self.tool("scancel", "-u", "root", check=False)
            end = time.monotonic() + 15
            while self.tool("squeue", "-h", check=False).strip() and time.monotonic() < end:
                time.sleep(0.1)
        pids = [self.pid(f"slurmd.n{i}") for i in range(1, self.nodes + 1)]
        pids = [p for p in [*pids, self.pid("slurmctld"), self.pid("munged")] if p]
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids + (self.processes() if sig == signal.SIGKILL else []):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sig)
            end = time.monotonic() + 5
            while any(map(alive, pids)) and time.monotonic() < end:
                time.sleep(0.05)


def alive(pid):
    with contextlib.suppress(OSError, IndexError):
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
        return stat.rsplit(")", 1)[1].split()[0] != "Z"
    return False
