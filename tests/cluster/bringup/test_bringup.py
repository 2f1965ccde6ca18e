"""The description of a cluster and what is made of it, without any machine; `ssh` is a program of the test's own."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.bringup import scripts
from gemfleet.cluster.bringup.description import ClusterDescription
from gemfleet.cluster.bringup.operate import Operator, check_versions
from gemfleet.cluster.bringup.ssh import Ssh, address_of
from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.token_file import load_token
from gemfleet.launcher.submit.cluster_file import load_hosts
from gemfleet.train.errors import UserError

HOSTS = """
name: lab
head: {host: 10.0.0.1, cpus: 4, gpus: 0}
workers:
  - {host: 10.0.0.2, gpus: 8, interface: ib0, environment: {NCCL_IB_HCA: mlx5}}
  - 10.0.0.3
ssh: {user: trainer, key: /keys/one, port: 2222}
programs: ~/venv/bin
object_store_gib: 2
environment: {NCCL_DEBUG: WARN, NCCL_IB_HCA: none}
"""
FACTS = {"gemfleet": "0.1.0", "ray": "2.60.0", "python": "3.11.7", "torch": "2.13.0", "ours": [], "others": []}


@pytest.fixture
def description(tmp_path: Path) -> ClusterDescription:
    return described(tmp_path, HOSTS)


def described(folder: Path, text: str) -> ClusterDescription:
    (folder / "hosts.yaml").write_text(text)
    return load_hosts(folder / "hosts.yaml")


def test_every_problem_of_a_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    text = """
head: {host: 10.0.0.1, gpus: -1}
workers: [{host: 10.0.0.2, gpu: 8}, {host: b, address: nonsense}]
ports: {gcs: 6379, metrics: 6379}
environment: {RAY_AUTH_MODE: disabled}
enviroment: {}
"""
    with pytest.raises(UserError) as error:
        described(tmp_path, text)
    lines = str(error.value).splitlines()
    assert "head.gpus: found -1; give a whole number of at least 0" in lines[1]
    assert lines[2] == "  workers[0].gpu: unknown key; did you mean `gpus`?"
    assert "workers[1]: the address 'nonsense' of b is no IP address; give one" in lines[3]
    assert "ports: the port 6379 is given twice" in lines[4]
    assert lines[5] == "  enviroment: unknown key; did you mean `environment`?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("head: a\nenvironment: {RAY_AUTH_MODE: disabled}", "RAY_AUTH_MODE is set by `gemfleet cluster` itself"),
        ("head: a\nworkers: [b, b]", "the host 'b' appears twice"),
        ("workers: [b]", "head: missing"),
        ("head: a\nports: {workers_from: 6000, workers_to: 7000}", "lies among the workers' ports"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        described(tmp_path, text)


def test_start_says_everything_to_ray(description: ClusterDescription) -> None:
    assert description.head is not None
    head = scripts.start(description, description.head, "10.0.0.1", "10.0.0.1")
    assert "ray start --head --node-ip-address=10.0.0.1" in head
    for option in ("--dashboard-host=127.0.0.1", "--num-cpus=4", "--num-gpus=0", "--object-store-memory=2147483648"):
        assert option in head
    worker = scripts.start(description, description.workers[0], "10.0.0.2", "10.0.0.1")
    assert "--address=10.0.0.1:6379" in worker
    assert "--num-gpus=8" in worker
    assert "--head" not in worker
    assert "dashboard-host" not in worker


def test_a_node_finds_the_common_variables_and_its_own(description: ClusterDescription, tmp_path: Path) -> None:
    """The scripts are run by a real shell, in a home of the test's own."""
    home = tmp_path / "home of a person"
    home.mkdir()
    script = scripts.prepare(description, description.workers[0], "a-token-of-some-length")
    run_script(script, home)
    token = home / ".gemfleet-cluster/lab/token"
    assert token.read_text() == "a-token-of-some-length\n"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    shown = run_script(f'{scripts.inside(description)}env; echo "FIRST=${{PATH%%:*}}"\n', home)
    assert f"RAY_AUTH_TOKEN_PATH={token}" in shown
    assert f"FIRST={home}/venv/bin" in shown
    expected = ("RAY_AUTH_MODE=token", "NCCL_SOCKET_IFNAME=ib0", "NCCL_IB_HCA=mlx5", "NCCL_DEBUG=WARN")
    assert [line for line in expected if line not in shown] == []
    assert "GEMFLEET_CLUSTER=" not in shown  # a person may source the file: their shell is not the cluster's


def run_script(script: str, home: Path) -> str:
    done = subprocess.run(
        ["bash", "-s"], input=script, text=True, capture_output=True, env={**os.environ, "HOME": str(home)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_setup_commands_run_and_a_failing_one_is_told(tmp_path: Path) -> None:
    description = described(tmp_path, "head: 10.0.0.1\nsetup: ['touch made; cd /', 'exit 7', 'touch never']")
    assert description.head is not None
    script = scripts.prepare(description, description.head, "a-token-of-some-length")
    done = subprocess.run(["bash", "-s"], input=script, text=True, env={**os.environ, "HOME": str(tmp_path)})
    assert done.returncode == 7
    assert (tmp_path / "made").exists()
    assert not (tmp_path / "never").exists()


def test_ssh_is_told_account_key_and_port_and_nothing_secret(
    description: ClusterDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_ssh(tmp_path, monkeypatch, {})
    answers = Ssh(description.ssh).run_all(description.nodes(), lambda node: "echo secret-token\n", 20, "trying")
    assert {answer.output for answer in answers.values()} == {"secret-token\n"}
    lines = calls.read_text().splitlines()
    assert len(lines) == 3
    assert all("-i /keys/one -o IdentitiesOnly=yes -p 2222" in line for line in lines)
    assert all("secret" not in line for line in lines)
    assert sum("trainer@10.0.0.2 bash -s" in line for line in lines) == 1


def test_every_node_that_is_not_reached_is_named(
    description: ClusterDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_ssh(tmp_path, monkeypatch, {"10.0.0.2": "exit 255", "10.0.0.3": "echo no space left >&2; exit 3"})
    with pytest.raises(ClusterError) as error:
        Ssh(description.ssh).run_all(description.nodes(), lambda node: "true\n", 20, "the setup")
    assert "failed on 2 of 3 nodes" in str(error.value)
    assert "10.0.0.2: no connection" in str(error.value)
    assert "10.0.0.3: the setup ended with 3:\n    no space left" in str(error.value)


def test_versions_that_differ_stop_up_before_anything_starts(
    description: ClusterDescription, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = json.dumps({**FACTS, "ray": "2.59.0"})
    answers = dict.fromkeys(("10.0.0.1", "10.0.0.3"), f"echo '{json.dumps(FACTS)}'") | {"10.0.0.2": f"echo '{other}'"}
    calls = fake_ssh(tmp_path, monkeypatch, answers)
    with pytest.raises(ClusterError, match=r"ray: 2\.60\.0 on 10\.0\.0\.1, 10\.0\.0\.3; 2\.59\.0 on 10\.0\.0\.2"):
        Operator(description, lambda text: None).up("a-token-of-some-length")
    assert len(calls.read_text().splitlines()) == 3  # one look at each
    check_versions({"a": FACTS, "b": FACTS})


def fake_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> Path:
    """A program `ssh` that notes its arguments and runs the script here, or what `answers` says for a host."""
    calls, program = folder / "calls", folder / "bin" / "ssh"
    cases = "".join(f'*"@{host} "*) {command};;\n' for host, command in answers.items())
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\necho "$*" >> {calls}\ncase "$* " in\n{cases}*) exec bash -s;;\nesac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return calls


def test_a_token_is_made_once_and_guarded(tmp_path: Path) -> None:
    path = tmp_path / "clusters" / "lab" / "token"
    token = load_token(path)
    assert load_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(ClusterError, match="chmod 600"):
        load_token(path)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(ClusterError, match="holds no token"):
        load_token(path)


@pytest.mark.parametrize(
    ("node", "said"), [({"host": "localhost"}, "no other node reaches it"), ({"host": "no.such.invalid"}, "no address")]
)
def test_a_node_without_an_address_is_refused(node: dict[str, Any], said: str) -> None:
    description = ClusterDescription.model_validate({"head": node})
    assert description.head is not None
    with pytest.raises(ClusterError, match=said):
        address_of(description.head)
