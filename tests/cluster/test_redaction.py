"""Secrets by name and by shape, and nothing else; and what a terminal would obey."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.redaction import HIDDEN, clean_text, printable, redact
from gemfleet.cluster.registry.run_recorder import RunRecorder
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from hypothesis import given, settings
from hypothesis import strategies as st

S = "Zx9Qw7Lk2Mn4Vb6Pt8Rs"
NAMES = (
    *("AWS_SECRET_ACCESS_KEY", "aws_session_token", "AZURE_CLIENT_SECRET", "AccountKey", "SharedAccessSignature"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GITHUB_TOKEN", "GEMFLEET_GIT_TOKEN", "WANDB_API_KEY", "SLACK_WEBHOOK"),
    *("PGPASSWORD", "MYSQL_PWD", "passphrase", "clientSecret", "privateKey", "private_key_id", "x-api-key", "dsn"),
    *("RAY_AUTH_TOKEN", "connection_string", "encryptionKey", "cookie", "refresh_token", "hftoken", "sig"),
)
SHAPES = (
    *(f"hf_{S}", f"ghp_{S}", f"github_pat_{S}", f"glpat-{S}", f"sk-ant-api03-{S}", f"sk_live_{S}", f"xoxb-1-{S}"),
    *(f"AIza{S}AAAAAAAAAAAAA", f"ya29.{S}", f"GOCSPX-{S}", f"eyJhbGciOiJIUzI1NiJ9.{S}.{S}", f"npm_{S}", f"hvs.{S}"),
    *(f"https://me:{S}@host/x", f"https://me:a@{S}@host/x", f"https://me:a/{S}@host/x", f"redis://:{S}@h:1"),
    *(f"https://{S}@github.com/x", f"me:{S}@host:path", f"https://hooks.slack.com/services/T0/B0/{S}"),
    *(f"-----BEGIN RSA PRIVATE KEY-----\nMII{S}\n-----END RSA PRIVATE KEY-----", f"MII{S * 3}"),
    *(f"Authorization: Bearer {S}", f"authorization: Basic {S}==", f"'Authorization': 'token {S}'", f"bearer {S}"),
    *(f"--token {S}", f"--api-key={S}", f"curl -u me:{S} x", f"machine h login me password {S}"),
    *(f"https://b.s3/x?X-Amz-Credential=AKIAX&X-Amz-Signature={S}", f"https://a.blob/x?sv=1&sig={S}%3D"),
    *("AKIAIOSFODNN7EXAMPLE".replace("EXAMPLE", f"{S[:7].upper()}"),),
)
HARMLESS = (
    "step 12 loss 1.2, 123 tokens/s, tokens: 100, max_new_tokens=128, add_special_tokens=False",
    "pad_token: <pad>, eos_token=<end_of_turn>, token_type_ids: [1, 2]",
    f"sha256: {'ab' * 32}, commit 0123456789abcdef0123456789abcdef01234567",
    "git@github.com:owner/repo.git, ssh://git@host/x, http://host:8265/x, https://medium.com/@user/x",
    "GEMFLEET_GIT_TOKEN is not set; the token: it is missing; password: str = None",
    "train.model: google/gemma-3-270m-it, targets: q_proj, 2026-11-28 20:00:00",
)


@pytest.mark.parametrize("name", NAMES)
def test_values_of_secret_names_are_hidden_however_they_are_written(name: str) -> None:
    written = (
        *(f"{name}={S}", f"{name} = {S}", f"export {name}='{S}'", f"{name}: {S}", f'{{"{name}": "{S}"}}'),
        *(
            f'{{\\"{name}\\": \\"{S}\\"}}',
            f"os.environ['{name}'] = '{S}'",
            f"{name}\uff1a{S}",
            f"A_TOKEN=abc12 {name}={S}",
        ),
        *(f"crash: {name}={S}", f"env:{name}: {S}", f"x={name}={S}"),
        *(f"GET /x?{name}={S}&y=1", f"{name}='{S[:5]} with spaces {S}'"),
    )
    assert [text for text in written if S in clean_text(text)] == []
    for value in ({name: S}, {name: [S]}, {name: {"inner": S}}, [{"x": {name: S}}]):
        assert S not in str(redact(value))


@pytest.mark.parametrize("text", SHAPES)
def test_secrets_are_told_by_their_shape(text: str) -> None:
    shown = clean_text(f"before {text}, after") if "\n" not in text and len(text) < 60 else clean_text(text)
    assert S not in shown
    assert HIDDEN in shown
    assert clean_text(shown) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert clean_text(text) == text


def test_numbers_and_vocabulary_stay_in_records() -> None:
    record = {"tokens": 100, "tokens_per_second": 2.5, "pad_token": "<pad>", "memory_bytes": [1, None], "ok": True}
    assert redact(record) == record
    assert redact({"password": 123456, "token": None}) == {"password": HIDDEN, "token": None}


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_cleaned_once_and_printable(text: str) -> None:
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    assert all(character in "\n\t" or ord(character) >= 32 for character in cleaned)
    cleaned.encode()


def test_control_sequences_are_written_out() -> None:
    hostile = "a\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\r\b\x00\ud800 Grüße 한국어\n\tb"
    shown = printable(hostile)
    assert shown == "a\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202egnp.exe\\r\\x08\\x00\\ud800 Grüße 한국어\n\tb"


@pytest.mark.parametrize(
    "part", ["a", "://", "a.", "x:", "eyJaaaaa.", '"', "\\", "a@b:", "-u ", "-----BEGIN PRIVATE KEY-----"]
)
def test_long_texts_take_no_time(part: str) -> None:
    begun = time.process_time()
    clean_text(part * (60_000 // len(part)))
    assert time.process_time() - begun < 2


def test_nothing_secret_is_kept_of_what_ranks_say(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path / "gemfleet.db")
    registry.create_run("r", "r", "x: 1\n")
    recorder = RunRecorder(str(tmp_path), "r")
    said = f"crash: AWS_SECRET_ACCESS_KEY={S} \x1b[2J"
    records: list[dict[str, Any]] = [
        {"kind": "log", "line": said},
        {"kind": "event", "event": "fatal", "message": said, "env": {"HF_TOKEN": S}},
    ]
    recorder.push(0, records, {"node": "n", "address": "a", "pid": 1})
    recorder.save_stacks(0, 1, "step", 9.0, said)
    registry.set_reason("r", said)
    registry.transition("r", RunState.FAILED, said)
    kept = b"".join(path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file())
    assert S.encode() not in kept
    assert b"\x1b[2J" not in kept
    assert b"\\x1b[2J" in kept
