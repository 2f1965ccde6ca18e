"""Repositories on real servers: https with a token of the environment, ssh with a key of the agent; LFS over both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gemfleet.launcher.result.delivery.git_push import push_folder
from gemfleet.launcher.sources.address import check_address
from gemfleet.launcher.sources.checkout import fetch_repository
from gemfleet.train.errors import UserError
from support.servers.git_servers import TOKEN, USER, HttpsServer, SshServer, https_server, ssh_server
from support.sources_on_disk import bare_repository, git, needs_git

pytestmark = needs_git
WEIGHTS = bytes(range(256)) * 4000
VARIABLES = ("GEMFLEET_GIT_HOST", "GEMFLEET_GIT_USER", "GEMFLEET_GIT_TOKEN", "GIT_SSL_CAINFO")


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsServer]:
    folder = tmp_path_factory.mktemp("https")
    (folder / "root").mkdir()
    with https_server(folder / "root", folder) as server:
        yield server


@pytest.fixture(scope="module")
def ssh(https: HttpsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("ssh"), https) as server:
        yield server


@pytest.fixture
def known(https: HttpsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of somebody who may use the https server."""
    for name, value in zip(VARIABLES, (https.host, USER, TOKEN, str(https.certificate)), strict=True):
        monkeypatch.setenv(name, value)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "output"
    folder.mkdir(parents=True)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (folder / "README.md").write_text("# 어댑터\n", encoding="utf-8")
    return folder


def repository(https: HttpsServer, name: str) -> Path:
    """An empty bare repository on the server that takes pushes."""
    path = https.root / f"{name}.git"
    bare_repository(path)
    git(path, "config", "http.receivepack", "true")
    return path


def check_round_trip(bare: Path, address: str, output: Path, cache: Path) -> None:
    """Pushed whole, the weights in LFS; a fresh clone is the same folder."""
    target = check_address(address, "result-1")
    commit = push_folder(output, target, "first", sleep=lambda seconds: None)
    assert git(bare, "rev-parse", "result-1").strip() == commit
    assert "git-lfs" in git(bare, "cat-file", "blob", "result-1:adapter_model.safetensors")
    folder = fetch_repository(target, cache)
    assert (folder / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "README.md").read_bytes() == (output / "README.md").read_bytes()


@pytest.mark.usefixtures("known")
def test_https_with_a_token_of_the_environment(https: HttpsServer, output: Path, tmp_path: Path) -> None:
    bare = repository(https, "over-https")
    check_round_trip(bare, f"https://{https.host}/over-https.git", output, tmp_path / "cache")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(("name", "value"), [("GEMFLEET_GIT_TOKEN", "wrong"), ("GEMFLEET_GIT_HOST", "other.example")])
def test_a_wrong_token_is_refused_and_a_token_goes_to_its_own_host_only(
    https: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    repository(https, f"closed-{name}")
    monkeypatch.setenv(name, value)
    https.seen.clear()
    with pytest.raises(UserError, match="cannot be fetched") as refused:
        fetch_repository(check_address(f"https://{https.host}/closed-{name}.git"), tmp_path)
    assert TOKEN not in str(refused.value)
    if name == "GEMFLEET_GIT_HOST":
        assert set(https.seen) == {None}  # nothing was sent to a host that the token is not for


@pytest.mark.usefixtures("known")
def test_a_certificate_that_nobody_vouches_for_is_refused(
    https: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GIT_SSL_CAINFO")
    https.seen.clear()
    with pytest.raises(UserError, match="certificate"):
        fetch_repository(check_address(f"https://{https.host}/over-https.git"), tmp_path)
    assert https.seen == []


@pytest.mark.usefixtures("known")
def test_ssh_with_a_key_of_the_agent(
    https: HttpsServer, ssh: SshServer, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", ssh.agent)
    monkeypatch.setenv("GEMFLEET_GIT_KNOWN_HOSTS", str(ssh.known_hosts))
    bare = repository(https, "over-ssh")
    check_round_trip(bare, ssh.address(bare), output, tmp_path / "cache")


def test_an_unknown_host_and_a_missing_key_are_refused(
    https: HttpsServer, ssh: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = check_address(ssh.address(repository(https, "closed-ssh")))
    (tmp_path / "nobody").touch()
    monkeypatch.setenv("SSH_AUTH_SOCK", ssh.agent)
    monkeypatch.setenv("GEMFLEET_GIT_KNOWN_HOSTS", str(tmp_path / "nobody"))
    with pytest.raises(UserError, match="Host key verification failed"):
        fetch_repository(address, tmp_path / "cache")
    monkeypatch.setenv("GEMFLEET_GIT_KNOWN_HOSTS", str(ssh.known_hosts))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "no-agent"))
    with pytest.raises(UserError, match="Permission denied"):
        fetch_repository(address, tmp_path / "cache")
