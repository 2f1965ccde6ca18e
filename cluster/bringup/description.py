"""The description of a cluster in one file: its machines, how to reach them, and what Ray is told there."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from .on_node import MARKER
from .sections import CloudSection, KubernetesSection, Section, SlurmSection

Port = Annotated[int, Field(ge=1, le=65535)]
NAME_PATTERN = r"^[a-z][a-z0-9-]{0,30}$"
ENVIRONMENT_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
Environment = dict[Annotated[str, Field(pattern=ENVIRONMENT_NAME)], str]
# gemfleet sets these on every node. Another value in the file would break the cluster.
OWN_VARIABLES = frozenset({"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", MARKER})


class SshSection(Section):
    """How the machine that runs `gemfleet cluster` reaches the nodes. Nodes need no keys for one another."""

    user: Annotated[str | None, Field(description="account on the nodes; null: as in ~/.ssh/config")] = None
    key: Annotated[str | None, Field(description="private key file here; null: as in ~/.ssh/config or the agent")] = (
        None
    )
    port: Annotated[int | None, Field(ge=1, le=65535, description="null: as in ~/.ssh/config, else 22")] = None
    known_hosts: Annotated[
        str | None, Field(description="file of host keys here; null: ~/.ssh/known_hosts. Changed keys are refused")
    ] = None
    accept_new_hosts: Annotated[
        bool, Field(description="note the key of a host seen for the first time, as `ssh` does after its question")
    ] = True
    timeout_s: Annotated[int, Field(ge=1, description="seconds for a connection")] = 15


class NodeSection(Section):
    """One machine. A bare text in the file stands for `{host: TEXT}`."""

    host: Annotated[str, Field(min_length=1, description="name or address for ssh")]
    address: Annotated[
        str | None, Field(description="IP address that the other nodes reach it at; null: what `host` resolves to here")
    ] = None
    cpus: Annotated[int | None, Field(ge=0, description="cores Ray may give out; null: what Ray finds")] = None
    gpus: Annotated[int | None, Field(ge=0, description="GPUs Ray may give out; null: what Ray finds")] = None
    interface: Annotated[
        str | None, Field(description="network interface of gloo and NCCL; null: the one that carries `address`")
    ] = None
    ssh_port: Annotated[int | None, Field(ge=1, le=65535, description="null: as in `ssh.port`")] = None
    environment: Environment = Field(
        default_factory=dict, description="variables of this node's Ray processes, over the common ones"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"host": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.address is not None:
            try:
                ipaddress.ip_address(self.address)
            except ValueError:
                raise ValueError(f"the address {self.address!r} of {self.host} is no IP address; give one") from None
        _refuse_own(self.environment, f"environment of {self.host}")
        return self


class PortsSection(Section):
    """Ports that Ray listens at, the same on every node, so that a firewall can name them. gloo and NCCL use others."""

    gcs: Annotated[int, Field(ge=1, le=65535, description="on the head: the cluster's address")] = 6379
    dashboard: Annotated[int, Field(ge=1, le=65535, description="on the head, loopback only: dashboard and jobs")] = (
        8265
    )
    client: Annotated[int, Field(ge=1, le=65535, description="on the head: Ray client")] = 10001
    node_manager: Port = 6380
    object_manager: Port = 6381
    runtime_env_agent: Port = 6382
    agent_grpc: Port = 6383
    agent_http: Port = 6384
    metrics: Port = 6385
    workers_from: Annotated[int, Field(ge=1024, le=65535, description="first port of Ray's worker processes")] = 20000
    workers_to: Annotated[int, Field(ge=1024, le=65535, description="last port of Ray's worker processes")] = 24999

    @model_validator(mode="after")
    def _check(self) -> Self:
        single = [value for name, value in self if not name.startswith("workers_")]
        twice = sorted({port for port in single if single.count(port) > 1})
        if twice:
            raise ValueError(f"the port {twice[0]} is given twice; give each service its own")
        if self.workers_to - self.workers_from < 99:
            raise ValueError(
                f"workers_from {self.workers_from} to workers_to {self.workers_to} is too narrow; give 100 ports"
            )
        inside = [port for port in single if self.workers_from <= port <= self.workers_to]
        if inside:
            raise ValueError(f"the port {inside[0]} lies among the workers' ports; move it or them")
        return self


class ClusterDescription(Section):
    """The file of `gemfleet cluster`: machines, how to reach them, what Ray is told, and what templates say."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, description="lower-case letters, digits and `-`; at most 31")] = (
        "gemfleet"
    )
    head: Annotated[
        NodeSection | None, Field(description="the node that keeps runs and checkpoints; it needs no GPU")
    ] = None
    workers: Annotated[tuple[NodeSection, ...], Field(strict=False, description="the other nodes")] = ()
    ssh: SshSection = SshSection()
    ports: PortsSection = PortsSection()
    programs: Annotated[
        str | None, Field(description="folder of `python`, `ray` and `gemfleet` on the nodes; null: on their PATH")
    ] = None
    setup: Annotated[
        tuple[str, ...], Field(strict=False, description="shell commands run on each node before Ray starts")
    ] = ()
    home: Annotated[str, Field(min_length=1, description="GEMFLEET_HOME on the nodes")] = "~/.gemfleet"
    token_file: Annotated[
        str | None,
        Field(description="the cluster's token here, made when missing; null: clusters/NAME/token in GEMFLEET_HOME"),
    ] = None
    object_store_gib: Annotated[
        float | None, Field(gt=0, description="shared memory of Ray's objects on each node; null: 30% of the memory")
    ] = None
    job_stop_wait_s: Annotated[
        int, Field(ge=3, description="seconds between `ray job stop` and the kill: time for a last checkpoint")
    ] = 300
    environment: Environment = Field(default_factory=dict, description="variables of every node's Ray processes")

    kubernetes: KubernetesSection = KubernetesSection()
    slurm: SlurmSection = SlurmSection()
    aws: CloudSection = CloudSection(region="us-east-1", head_type="m7i.2xlarge", worker_type="p5.48xlarge")
    gcp: CloudSection = CloudSection(
        region="us-central1", zone="us-central1-a", head_type="n2-standard-8", worker_type="a3-highgpu-8g"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_own(self.environment, "environment")
        hosts = [node.host for node in self.nodes()]
        twice = sorted({host for host in hosts if hosts.count(host) > 1})
        if twice:
            raise ValueError(f"the host {twice[0]!r} appears twice; name each machine once, the head as `head` only")
        return self

    def nodes(self) -> tuple[NodeSection, ...]:
        """Every machine, the head first."""
        return ((self.head,) if self.head else ()) + self.workers


def _refuse_own(environment: Environment, where: str) -> None:
    own = sorted(OWN_VARIABLES & environment.keys())
    if own:
        raise ValueError(f"{where}: {own[0]} is set by `gemfleet cluster` itself; remove it")
