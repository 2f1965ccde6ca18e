"""What travels with a submitted job, what is refused before it is sent, and where relative paths are found."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from gemfleet.launcher.config.load import load_config
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.submit import job
from gemfleet.launcher.submit.job_files import Luggage
from gemfleet.train.errors import UserError


def folder_with(tmp_path: Path, files: dict[str, int], **train: object) -> tuple[Path, LaunchConfig]:
    """A folder with files of these sizes and a configuration; returns the configuration's path and content."""
    folder = tmp_path / "project"
    folder.mkdir(exist_ok=True)
    for name, size in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"train": {"model": "demo", "data": {"train": "demo"}, **train}}))
    return path, load_config(path)


def test_small_files_travel_and_weights_repositories_and_large_files_do_not(tmp_path: Path) -> None:
    files = {
        "rows.jsonl": 10,
        "sub/more.csv": 10,
        ".gitignore": 5,
        ".git/HEAD": 5,
        "a.safetensors": 5,
        "big.csv": 11 << 20,
    }
    path, _ = folder_with(tmp_path, files)
    Luggage(path.parent).copy_to(tmp_path / "package")
    sent = {str(file.relative_to(tmp_path / "package")) for file in (tmp_path / "package").rglob("*") if file.is_file()}
    assert sent == {"run.yaml", "rows.jsonl", "sub/more.csv"}


def test_an_ignore_file_leaves_out_what_it_names(tmp_path: Path) -> None:
    """With git's rules: anchored folders, patterns, and exceptions; also for what the configuration itself names."""
    files = {"rows.csv": 10, "old.csv": 10, "out/a.txt": 10, "sub/out/b.txt": 10}
    path, config = folder_with(tmp_path, files, data={"train": "old.csv"})
    (path.parent / ".gemfleetignore").write_text("# large ones\n*.csv\n!rows.csv\n/out/\n")
    Luggage(path.parent).copy_to(tmp_path / "package")
    sent = {str(file.relative_to(tmp_path / "package")) for file in (tmp_path / "package").rglob("*") if file.is_file()}
    assert sent == {"run.yaml", "rows.csv", "sub/out/b.txt"}
    with pytest.raises(UserError, match=r"old\.csv does not travel with a job \(\.gemfleetignore names it\)"):
        job.check_inputs_travel(config, Luggage(path.parent))


CREDENTIALS = (
    *(".env", ".netrc", ".git-credentials", ".ssh/id_ed25519", ".aws/credentials", ".config/gcloud/x.json", ".npmrc"),
    *(".gemfleet/api/admin.token", ".cache/huggingface/token", "sub/.env.local", "server.pem", "tls/server.KEY"),
    *(
        "credentials.json",
        "service-account-1.json",
        "client_secret_1.json",
        "kubeconfig",
        "prod.env",
        "token",
        "id_rsa",
    ),
)


def test_credentials_and_links_that_lead_out_stay_and_all_is_listed(tmp_path: Path) -> None:
    path, _ = folder_with(tmp_path, {"rows.jsonl": 10, "sub/tokenizer.json": 10, **dict.fromkeys(CREDENTIALS, 9)})
    folder, outside = path.parent, tmp_path / "outside"
    outside.mkdir()
    (outside / "notes.txt").write_text("outside")
    (folder / "deploy").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nMII\n")
    (folder / "robot.json").write_text('{"type": "x", "private_key": "-----BEGIN PRIVATE KEY-----\\nMII"}')
    (folder / "notes.txt").symlink_to(outside / "notes.txt")
    (folder / "elsewhere").symlink_to(outside)
    (folder / "plain.txt").symlink_to(folder / ".env")
    (folder / "again.jsonl").symlink_to("rows.jsonl")
    packed = Luggage(folder, "run.yaml").copy_to(tmp_path / "package")
    sent = {str(file.relative_to(tmp_path / "package")) for file in (tmp_path / "package").rglob("*") if file.is_file()}
    assert sent == set(packed.sent) == {"run.yaml", "rows.jsonl", "sub/tokenizer.json", "again.jsonl"}
    told = "\n".join(packed.sentences())
    assert "sends 4 files" in told
    for name in (*sent, "deploy", "robot.json", "notes.txt", "elsewhere", "server.pem", ".env", ".ssh"):
        assert name in told, name


def test_a_hidden_configuration_travels_and_hidden_data_is_refused(tmp_path: Path) -> None:
    path, _ = folder_with(tmp_path, {".rows.jsonl": 10, "m/.gitattributes": 5, "m/config.json": 5})
    hidden = path.rename(path.with_name(".run.yaml"))
    assert set(Luggage(path.parent, hidden.name).copy_to(tmp_path / "package").sent) == {".run.yaml", "m/config.json"}
    path, config = folder_with(tmp_path, {}, data={"train": ".rows.jsonl"}, model="m")
    with pytest.raises(UserError, match=r"rows\.jsonl does not travel with a job \(hidden\)"):
        job.check_inputs_travel(config, Luggage(path.parent))


def test_a_folder_above_the_limit_names_its_largest_files(tmp_path: Path) -> None:
    path, _ = folder_with(tmp_path, {f"{i}.csv": (9 << 20) + i for i in range(12)})
    with pytest.raises(UserError, match=r"108 MiB that would travel.*11\.csv"):
        Luggage(path.parent).copy_to(tmp_path / "package")


def test_data_that_cannot_travel_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    path, config = folder_with(tmp_path, {"rows.jsonl": 11 << 20}, data={"train": "rows.jsonl"})
    with pytest.raises(UserError, match=r"train\.data\.train.*rows\.jsonl does not travel"):
        job.check_inputs_travel(config, Luggage(path.parent))
    path, config = folder_with(tmp_path, {"m/model.safetensors": 5}, model="m")
    with pytest.raises(UserError, match=r"train\.model.*model\.safetensors does not travel"):
        job.check_inputs_travel(config, Luggage(path.parent))


def test_every_data_set_of_a_list_has_to_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ["rows.jsonl", {"path": "shards/*.jsonl", "name": "shards"}]
    files = {"rows.jsonl": 10, "shards/a.jsonl": 10, "shards/b.jsonl": 10}
    path, config = folder_with(tmp_path, files, data={"train": sets, "eval": ["rows.jsonl", "here*.jsonl"]})
    job.check_inputs_travel(config, Luggage(path.parent))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here-1.jsonl").touch()
    with pytest.raises(UserError, match=r"train\.data\.eval\[1\]\.path is 'here.*not beside the configuration"):
        job.check_inputs_travel(config, Luggage(path.parent))
    (tmp_path / "here-1.jsonl").rename(path.parent / "here-1.jsonl")
    (path.parent / "shards" / "b.jsonl").write_bytes(b"x" * (11 << 20))
    with pytest.raises(
        UserError, match=r"train\.data\.train\[1\]\.path is '.*shards/.*', whose b\.jsonl does not travel"
    ):
        job.check_inputs_travel(config, Luggage(path.parent))


def test_data_in_the_working_directory_only_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, config = folder_with(tmp_path, {}, data={"train": "here.jsonl"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.jsonl").touch()
    with pytest.raises(UserError, match=r"here\.jsonl.*not beside the configuration"):
        job.check_inputs_travel(config, Luggage(path.parent))


def test_a_relative_path_is_found_in_the_working_directory_then_beside_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, config = folder_with(tmp_path, {"rows.jsonl": 5}, data={"train": "rows.jsonl", "eval": "nowhere.jsonl"})
    assert config.train.data.train == str(path.parent / "rows.jsonl")
    assert config.train.data.eval == "nowhere.jsonl"
    monkeypatch.chdir(path.parent)
    assert load_config(path).train.data.train == "rows.jsonl"


def test_the_entrypoint_quotes_what_a_shell_would_change() -> None:
    assert job.entrypoint("my run.yaml", ["name=a;b"]) == "gemfleet train 'my run.yaml' --set 'name=a;b'"
    assert job.entrypoint("a.yaml", [], tags=["team=a b"]) == "gemfleet train a.yaml --tag 'team=a b'"


@pytest.mark.parametrize("address", ["ftp://head", "http://"])
def test_an_address_that_is_no_dashboard(address: str) -> None:
    with pytest.raises(UserError, match="is not the address of a dashboard"):
        job.connect(address)


def test_a_dashboard_that_does_not_answer() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(UserError, match=f"nobody answers at --address {address}"):
        job.connect(address)


class AsksForToken(BaseHTTPRequestHandler):
    """Answers as the dashboard of a Ray with token authentication does to whoever has none, or another one."""

    def do_GET(self) -> None:
        given = self.headers.get("Authorization")
        self.send_response(403 if given else 401)
        self.end_headers()
        said = b"Forbidden: Invalid authentication token" if given else b"Unauthorized: Missing authentication token"
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def guarded() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), AsksForToken)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_ray_that_asks_for_a_token_says_how_to_give_it(guarded: str) -> None:
    from ray.exceptions import AuthenticationError

    with pytest.raises(UserError, match=rf"{guarded} asks for a token; set RAY_AUTH_MODE=token.*--hosts FILE") as error:
        job.connect(guarded)
    assert "\n" not in str(error.value)
    with (
        pytest.raises(UserError, match="does not take the token that it was given; set RAY_AUTH_MODE"),
        job.token_told(guarded),
    ):
        raise AuthenticationError("Authentication failed: Forbidden: Invalid authentication token")
