"""Slurm over the hosts of a fleet: a controller on the first, a daemon on each, with private disks and homes."""

from __future__ import annotations

import re
import shutil

from support.hosts.hosts import Fleet, Host, wait_until

PROGRAMS = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm", "munged": "munge"}
FOLDER = "/tmp/slurm"
CONFIGURATION = """
ClusterName=lab
SlurmctldHost={head.name}({head.address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/daemon.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/daemon.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_min_interval=1
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_no_slurm() -> str | None:
    """Why Slurm cannot run here; None when it can."""
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    return f"needs the Debian packages {', '.join(sorted(missing))}" if missing else None


class Slurm:
    """A running Slurm. Its commands run on the first host. Closing the fleet ends it all."""

    def __init__(self, fleet: Fleet) -> None:
        """Starts it, with a pretended GPU and a CPU on each host."""
        self.hosts = list(fleet.hosts.values())
        self.head = self.hosts[0]
        nodes = [f"NodeName={h.name} NodeAddr={h.address} CPUs=1 RealMemory=1000 Gres=gpu:1" for h in self.hosts]
        text = CONFIGURATION.format(head=self.head, folder=FOLDER, nodes="\n".join(nodes))
        names = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
        for host in self.hosts:
            self._prepare(host, text, names)
        self.command("slurmctld")
        for host in self.hosts:
            host.run(["env", f"SLURM_CONF={FOLDER}/slurm.conf", "slurmd", "-N", host.name])
        idle = f"{len(self.hosts)} idle"
        wait_until(lambda: idle in self.command("sinfo", "--noheader", "--format=%D %t"), "not all nodes are idle", 60)

    def command(self, *arguments: str) -> str:
        """What one of Slurm's commands prints on the first host."""
        return self.head.run(["env", f"SLURM_CONF={FOLDER}/slurm.conf", *arguments], cwd=FOLDER).stdout

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """`sbatch` of a script's text, with its arguments. Returns the job's id."""
        self.head.disk(f"{FOLDER}/job.sh").write_text(script)
        return self.command("sbatch", "--parsable", *options, f"{FOLDER}/job.sh", *arguments).strip()

    def state(self, job: str) -> str:
        """Of a job, or of a task of an array as `5_1`: PENDING, RUNNING, COMPLETED, …"""
        found = re.search(r"JobState=(\w+)", self.command("scontrol", "show", "job", job))
        assert found is not None
        return found[1]

    def leave_about(self, job: str, seconds: int) -> None:
        """Gives a running job a time limit, in whole minutes, that leaves it `seconds` and less than a minute more."""
        shown = self.command("scontrol", "show", "job", job)
        hours, minutes, past = (int(part) for part in re.findall(r"RunTime=(\d+):(\d+):(\d+)", shown)[0])
        ran = hours * 3600 + minutes * 60 + past
        self.command("scontrol", "update", f"JobId={job}", f"TimeLimit={-(-(ran + seconds) // 60)}")

    def output(self, job: str) -> str:
        """What the job has printed so far, on whichever host."""
        files = [host.disk(f"{FOLDER}/slurm-{job}.out") for host in self.hosts]
        return "".join(file.read_text() for file in files if file.exists())

    def _prepare(self, host: Host, text: str, names: str) -> None:
        """Its configuration, the others' names, the mount that `slurmd` looks for, and munge with the common key."""
        host.run(["mkdir", "-p", f"{FOLDER}/state", f"{FOLDER}/spool", "/run/munge"], cwd="/tmp")
        host.run(["mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup"])
        others = "".join(line + "\n" for line in names.splitlines() if not line.endswith(f" {host.name}"))
        host.disk("/run/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {host.name}\n{others}")
        host.disk(f"{FOLDER}/slurm.conf").write_text(text)
        host.disk(f"{FOLDER}/cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        host.disk(f"{FOLDER}/gres.conf").write_text("Name=gpu File=/dev/null\n")
        key = host.disk(f"{FOLDER}/munge.key")
        key.write_bytes(b"the same on all hosts of the lab." * 2)
        key.chmod(0o400)
        files = [f"--{kind}-file={FOLDER}/munge.{kind}" for kind in ("key", "log", "pid", "seed")]
        host.run(["munged", "--force", *files])
