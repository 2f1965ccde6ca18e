"""Repositories are fetched with their LFS files, once; hostile ones are refused and run nothing."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest
from gemfleet.launcher.sources.address import ROOTS_VARIABLE, GitAddress, parse_source
from gemfleet.launcher.sources.checkout import fetch_repository
from gemfleet.launcher.sources.fetch import fetch_once, fetch_sources
from gemfleet.launcher.sources.git_command import Git, GitError, need_git
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.model.resolve import check_model_folder
from support.sources_on_disk import bare_repository, commit_folder, git, needs_git

pytestmark = needs_git


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ROOTS_VARIABLE, str(tmp_path / "remote"))
    return tmp_path / "remote"


def pushed(roots: Path, name: str, files: dict[str, bytes], lfs: tuple[str, ...] = (), branch: str = "main") -> str:
    """A repository with these files; returns it as a source."""
    address = bare_repository(roots / f"{name}.git")
    work = roots.parent / f"{name}-files"
    for path, content in files.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_bytes(content)
    commit_folder(work, address, lfs, branch)
    return f"git+{address}#{branch}"


def test_a_repository_comes_with_its_lfs_files_once(roots: Path, tmp_path: Path) -> None:
    weights = bytes(range(256)) * 4000
    source = pushed(roots, "model", {"w.safetensors": weights, "config.json": b"{}"}, ("*.safetensors",), "next")
    assert b"git-lfs" in git(roots / "model.git", "cat-file", "blob", "next:w.safetensors").encode()
    seen: list[tuple[int, int, str]] = []
    folder = fetch_repository(parse_source(source), tmp_path / "cache", lambda *facts: seen.append(facts))
    assert (folder / "w.safetensors").read_bytes() == weights
    assert not (folder / ".git").exists()
    assert seen[-1][:2] == (100, 100)
    (folder / "mark").touch()
    assert fetch_repository(parse_source(source), tmp_path / "cache") == folder
    assert (folder / "mark").exists()
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".fetch")] == []


def test_a_missing_branch_and_a_missing_repository_are_named(roots: Path, tmp_path: Path) -> None:
    source = pushed(roots, "data", {"rows.jsonl": b'{"text": "a"}\n'})
    with pytest.raises(UserError, match="no branch other"):
        fetch_repository(parse_source(source.replace("#main", "#other")), tmp_path / "cache")
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch_repository(parse_source(source.replace("data.git", "gone.git")), tmp_path / "cache")


def test_sources_become_folders(roots: Path, tmp_path: Path) -> None:
    rows = b'{"text": "a cat"}\n'
    data = pushed(roots, "data", {"data/train.jsonl": rows, "data/test.jsonl": rows, "README.md": b"x"})
    model = pushed(roots, "model", {"config.json": b"{}"})
    config = TrainConfig.model_validate({"model": model, "data": {"train": data}})
    fetched = fetch_sources(config, tmp_path / "cache")
    assert Path(str(fetched.data.train)).read_bytes() == Path(str(fetched.data.eval)).read_bytes() == rows
    assert (Path(fetched.model) / "config.json").is_file()
    assert fetch_sources(fetched, tmp_path / "cache") == fetched


def test_a_run_that_goes_on_keeps_its_commits(roots: Path, tmp_path: Path) -> None:
    data = pushed(roots, "data", {"rows.jsonl": b'{"text": "a"}\n'})
    config = TrainConfig.model_validate({"model": "demo", "data": {"train": data}})
    first = fetch_once(config, tmp_path / "cache", tmp_path / "memory.json")
    files = tmp_path / "more"
    git(tmp_path, "clone", "--quiet", str(roots / "data.git"), str(files))
    (files / "rows.jsonl").write_bytes(b'{"text": "b"}\n')
    git(files, "commit", "--quiet", "--all", "--message", "more")
    git(files, "push", "--quiet", "origin", "HEAD:main")
    assert fetch_sources(config, tmp_path / "cache") != first
    assert fetch_once(config, tmp_path / "cache", tmp_path / "memory.json") == first
    Path(str(first.data.train)).unlink()
    with pytest.raises(UserError, match="source has changed since"):
        fetch_once(config, tmp_path / "cache", tmp_path / "memory.json")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_never_kept_nor_opened(roots: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    files = {"config.json": b'{"model_type": "gemma3_text"}', "pytorch_model.bin": pickle.dumps(Touch(sentinel))}
    folder = fetch_repository(parse_source(pushed(roots, "m", files)), tmp_path / "cache")
    assert [p.name for p in folder.iterdir()] == ["config.json"]
    with pytest.raises(UserError, match=r"no \*\.safetensors weights"):
        check_model_folder(folder)
    assert not sentinel.exists()


def test_a_link_to_outside_is_refused(roots: Path, tmp_path: Path) -> None:
    address = bare_repository(roots / "link.git")
    work = tmp_path / "work"
    work.mkdir()
    (work / "inner").mkdir()
    (work / "inner" / "secret").symlink_to("../../../etc/passwd")
    commit_folder(work, address)
    with pytest.raises(UserError, match=r"link 'inner/secret' to '../../../etc/passwd'"):
        fetch_repository(parse_source(f"git+{address}"), tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("secret"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [(".lfsconfig", b"[lfs]\nurl = https://elsewhere.example/x\n", "lfsconfig")],
)
def test_a_redirection_of_lfs_is_refused(roots: Path, tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    source = pushed(roots, "redirect", {name: content})
    with pytest.raises(UserError, match=sentence):
        fetch_repository(parse_source(source), tmp_path / "cache")


def test_git_itself_refuses_what_slips_past_the_check(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    for url in (f"ext::touch {sentinel}", f"--upload-pack=touch {sentinel};", f"file://{tmp_path}"):
        with pytest.raises(GitError):
            Git(tmp_path, GitAddress(url, "https")).run("ls-remote", "--", url)
    assert not sentinel.exists()


def test_hooks_and_settings_of_the_machine_are_not_used(
    roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel = tmp_path / "sentinel"
    hook = tmp_path / "home" / "template" / "hooks" / "post-checkout"
    hook.parent.mkdir(parents=True)
    hook.write_text(f"#!/bin/sh\ntouch {sentinel}\n")
    hook.chmod(0o755)
    (tmp_path / "home" / ".gitconfig").write_text(f"[init]\n\ttemplateDir = {hook.parent.parent}\n")
    source = pushed(roots, "plain", {"a.txt": b"a"})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(hook.parent.parent))
    fetch_repository(parse_source(source), tmp_path / "cache")
    assert not sentinel.exists()


def test_a_slow_git_is_ended_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport time\nprint('Receiving objects:  42% (1/2)', flush=True)\ntime.sleep(60)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    seen: list[tuple[int, int, str]] = []
    git_here = Git(tmp_path, GitAddress("https://host/x.git", "https"))
    with pytest.raises(GitError, match=r"took longer than 1.5 s"):
        git_here.run("fetch", seconds=1.5, progress=lambda *facts: seen.append(facts))
    assert seen == [(42, 100, "receiving objects")]
    with pytest.raises(GitError, match=r"took longer than 0.5 s"):
        git_here.run("fetch", seconds=0.5)


def test_without_git_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get install git git-lfs"):
        need_git()
