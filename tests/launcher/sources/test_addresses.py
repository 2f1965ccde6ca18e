"""Which addresses of repositories are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from gemfleet.launcher.sources.address import ROOTS_VARIABLE, GitAddress, check_address, parse_source
from gemfleet.train.errors import UserError

HOSTILE = [
    "--upload-pack=touch sentinel",
    "-oProxyCommand=touch sentinel",
    "ext::sh -c touch% sentinel",
    "ssh://-oProxyCommand=touch/x",
    "ssh://git@-oProxyCommand=touch/x",
    "-u@host:path",
    "git@host:-path",
    "git@host::path",
    "http://host/plain.git",
    "https://user:secret@host/x.git",
    "ftp://host/x.git",
    "fd::17",
    "https://host/a b",
    "https://host/a\nb",
    "/etc",
    "../here",
    "",
    "file://host/share",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_hostile_addresses_are_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"password|not an address"):
        check_address(url)


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("git+https://host.example:8443/group/x.git", GitAddress("https://host.example:8443/group/x.git", "https")),
        ("git+git@host:group/x.git#main", GitAddress("git@host:group/x.git", "ssh", "main")),
        ("git+ssh://git@host/group/x.git#a/b-1.2", GitAddress("ssh://git@host/group/x.git", "ssh", "a/b-1.2")),
    ],
)
def test_the_usual_addresses_are_taken(source: str, address: GitAddress) -> None:
    assert parse_source(source) == address


@pytest.mark.parametrize("branch", ["--force", "a..b", "a b", "x;y", "../main", "a/"])
def test_hostile_branches_are_refused(branch: str) -> None:
    with pytest.raises(UserError, match="branch"):
        parse_source(f"git+https://host/x.git#{branch}")


def test_files_only_below_the_named_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "roots" / "x.git", tmp_path / "x.git"
    inside.mkdir(parents=True)
    (tmp_path / "roots" / "link").symlink_to(tmp_path)
    monkeypatch.setenv(ROOTS_VARIABLE, str(tmp_path / "roots"))
    assert check_address(f"file://{inside}").transport == "file"
    for path in (outside, f"{inside}/../../x.git", tmp_path / "roots" / "link" / "x.git"):
        with pytest.raises(UserError, match=ROOTS_VARIABLE):
            check_address(f"file://{path}")
    monkeypatch.delenv(ROOTS_VARIABLE)
    with pytest.raises(UserError, match=ROOTS_VARIABLE):
        check_address(f"file://{inside}")
