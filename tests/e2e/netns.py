"""Several hosts on one machine: network namespaces on a bridge, each with its own host name and a
link whose rate can be changed or cut while a job runs. Needs root, ip and tc; skips where they are
missing.

    with Hosts(3, "200mbit") as hosts:
        run = Background(jobs, 3, job, launcher=hosts.mpirun(1))
        hosts.rate(2, "100mbit")   # host 2's link, both ways
        hosts.cut(2)
"""
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

from conftest import MPIRUN

# Stands in for ssh: agent HOST COMMAND... runs it in that namespace, under that host name.
AGENT = """#!/bin/bash
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec nsenter --net="/run/netns/$host" unshare --uts --mount sh -c \\
    'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec sh -c "$*"' \\
    sh "$host" "HOSTS" "$@"
"""


def command(*words, check=True):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Hosts:
    def __init__(self, count, rate):
        self.count, self.start_rate = count, rate
        tag = os.getpid() % 10000
        self.bridge, self.names = f"mbb{tag}", [f"mb{tag}h{i}" for i in range(count)]
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="netns"))

    def __enter__(self):
        missing = [x for x in ("ip", "tc", "nsenter", "unshare") if not shutil.which(x)]
        if missing or os.geteuid() != 0:
            pytest.skip(f"network namespaces need root and {' '.join(missing) or 'ip'}")
        try:
            self.create()
        except OSError as error:
            self.__exit__()
            pytest.skip(f"cannot make network namespaces: {error}")
        return self

    def create(self):
        command("ip", "link", "add", self.bridge, "type", "bridge")
        command("ip", "link", "set", self.bridge, "up")
        names = "127.0.0.1 localhost\n"
        for i, name in enumerate(self.names):
            names += f"10.79.0.{i + 1} {name}\n"
            command("ip", "netns", "add", name)
            command("ip", "link", "add", f"v{name}", "type", "veth", "peer", "name", "eth0",
                    "netns", name)
            command("ip", "link", "set", f"v{name}", "master", self.bridge, "up")
            command("ip", "-n", name, "link", "set", "lo", "up")
            command("ip", "-n", name, "addr", "add", f"10.79.0.{i + 1}/24", "dev", "eth0")
            command("ip", "-n", name, "link", "set", "eth0", "up")
            self.rate(i, self.start_rate)
        (self.folder / "hosts").write_text(names, encoding="utf-8")
        agent = self.folder / "agent"
        agent.write_text(AGENT.replace("HOSTS", str(self.folder / "hosts")), encoding="utf-8")
        agent.chmod(0o755)

    def rate(self, host, rate):
        name, shape = self.names[host], ("root", "tbf", "rate", rate, "burst", "32kb", "latency",
                                         "50ms")
        command("tc", "-n", name, "qdisc", "replace", "dev", "eth0", *shape)
        command("tc", "qdisc", "replace", "dev", f"v{name}", *shape)

    def cut(self, host):
        command("ip", "link", "set", f"v{self.names[host]}", "nomaster", "down")

    def mpirun(self, slots):
        """The words in front of `-np N program` that start ranks on all hosts."""
        hostfile = self.folder / "hostfile"
        hostfile.write_text("".join(f"{x} slots={slots}\n" for x in self.names), encoding="utf-8")
        return [str(self.folder / "agent"), self.names[0], str(MPIRUN), "--hostfile",
                str(hostfile), "--mca", "plm", "rsh", "--mca", "plm_rsh_agent",
                str(self.folder / "agent"), "--mca", "oob_tcp_if_include", "eth0", "--mca", "pml",
                "ob1", "--mca", "btl", "self,vader,tcp", "--mca", "btl_tcp_if_include", "eth0",
                "-x", "MOEBATCH_TEST", "-x", "OMP_NUM_THREADS"]

    def processes(self):
        return [int(pid) for name in self.names
                for pid in command("ip", "netns", "pids", name, check=False).split()]

    def __exit__(self, *_):
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes():
                try:
                    os.kill(pid, sig)
                except ProcessLookupError:
                    pass
            if self.processes():
                time.sleep(0.3)
        for name in self.names:
            command("ip", "netns", "del", name, check=False)
            command("ip", "link", "del", f"v{name}", check=False)
        command("ip", "link", "del", self.bridge, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
