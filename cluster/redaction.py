"""Takes secrets and control characters out of texts before anybody keeps or shows them.

A secret shows by its name (`HF_TOKEN=…`, `"clientSecret": …`, `--password …`) or by its shape (`ghp_…`, a PEM block,
a password in an address). This is a net: it catches many secrets, not all.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

HIDDEN = "[hidden]"
# A name that ends with one of these words has a secret value.
WORDS = frozenset(
    {
        *("accesskey", "accountkey", "apikey", "auth", "authorization", "bearer", "cookie", "cookies", "credential"),
        *("credentials", "dsn", "jwt", "pass", "passphrase", "passwd", "password", "passwords", "privatekey", "pwd"),
        *("sas", "secret", "secretkey", "secrets", "session", "sig", "signature", "token", "tokens", "webhook"),
    }
)
KEYS = (
    *("access", "account", "api", "client", "deploy", "encryption", "fernet", "license", "master", "private", "secret"),
    *("service", "shared", "signing", "ssh", "storage", "subscription"),
)
PAIRS = frozenset({"connection string", "connection str", "webhook url", *(f"{first} key" for first in KEYS)})
ENDINGS = re.compile(r"\w(passwd|password|passphrase|secret|apikey|accesskey|token)$")  # PGPASSWORD
FILLERS = frozenset({"base64", "b64", "hash", "id", "str", "text", "value"})  # may follow such a word in a name
NUMERIC = frozenset({"pass", "passphrase", "passwd", "password", "pin", "pwd", "secret"})  # their value may be a number
# A name with one of these words means tokens of a tokenizer, which are no secrets.
VOCABULARY = frozenset(
    {
        *(
            "added",
            "additional",
            "audio",
            "bad",
            "begin",
            "boi",
            "bos",
            "cls",
            "decoder",
            "end",
            "eoi",
            "eos",
            "forced",
        ),
        *("image", "mask", "max", "min", "new", "next", "num", "pad", "per", "sep", "special", "start", "stop"),
        *("supervised", "suppress", "total", "type", "unk", "video"),
    }
)
PLAIN_VALUES = frozenset({"true", "false", "none", "null", "str", "auto", "yes", "no"})
SHAPES = tuple(
    re.compile(shape)
    for shape in (
        r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]*-----|\Z)",
        r"(?m)^[A-Za-z0-9+/]*[G-Zg-z+/][A-Za-z0-9+/]{58,75}={0,2}$",  # one line of such a block
        r"\bhf_[A-Za-z0-9]{12,}|\bapi_org_[A-Za-z0-9]{12,}",
        r"\bgh[pousr]_[A-Za-z0-9]{12,}|\bgithub_pat_[A-Za-z0-9_]{12,}|\bgl[a-z]{2,5}-[A-Za-z0-9_-]{16,}",
        r"\b[sr]k-[A-Za-z0-9_-]{16,}|\b[srp]k_(?:live|test)_[A-Za-z0-9]{10,}|\bgsk_[A-Za-z0-9]{16,}|\br8_[A-Za-z0-9]{16,}",
        r"\b(?:A3T[A-Z0-9]|ABIA|ACCA|AGPA|AIDA|AIPA|AKIA|ANPA|ANVA|AROA|ASIA)[A-Z0-9]{12,}\b",
        r"\bAIza[A-Za-z0-9_-]{20,}|\bya29\.[A-Za-z0-9_-]+|\bGOCSPX-[A-Za-z0-9_-]{10,}|\b1//0[A-Za-z0-9_-]{20,}",
        r"\bxox[a-z]-[A-Za-z0-9-]{8,}|\bxapp-[A-Za-z0-9-]{8,}|(?<=hooks\.slack\.com/)[A-Za-z0-9/_-]{8,}",
        r"\beyJ[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]+){1,4}",
        r"[A-Za-z0-9_~.-]{3}8Q~[A-Za-z0-9_~.-]{20,}|\bwandb_v\d_[A-Za-z0-9_]{16,}|\bnvapi-[A-Za-z0-9_-]{16,}",
        r"\bnpm_[A-Za-z0-9]{16,}|\bpypi-[A-Za-z0-9_-]{16,}|\bdckr_pat_[A-Za-z0-9_-]{16,}|\bdop_v1_[a-f0-9]{16,}",
        r"\bhv[sbr]\.[A-Za-z0-9_-]{16,}|\bdapi[a-f0-9]{32}|\bSG\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
        r"(?i)(?<=\bbearer )[A-Za-z0-9._~+/=-]{6,}|(?<=\bbasic )[A-Za-z0-9+/=]{8,}",
        r"(?<=://)[^\s/:@\"'<>]{0,128}:(?!\d{1,5}[/?#])[^\s\"'<>]{1,512}(?=@)",  # user:password@host
        r"(?<=https://)[^\s/@\"'<>]{1,512}(?=@)|(?<=http://)[^\s/@\"'<>]{1,512}(?=@)",
        r"(?<![\w/:.-])[\w.-]{1,64}:[^\s:@/\"']{6,256}(?=@[\w.-]+[:/])",
        r"(?i)(?<=\blogin )\S+\s+(?:account\s+\S+\s+)?password\s+\S+",
        r"(?<=\s-u )\S+:\S+|(?<=--user )\S+:\S+",
    )
)
AUTHORIZATION = re.compile(
    r"(?i)\b((?:proxy-)?authorization\b\\*[\"']?\]?\s*[:=]\s*\\*[\"']?)(?:[A-Za-z]+\s+)?[^\s\"']+"
)
NAMED = re.compile(
    r"(?<![A-Za-z0-9_.-])(?P<name>[A-Za-z_-][A-Za-z0-9_.-]{1,100})\\*[\"']?\]?(?P<sign>\s{0,4}(?:=>|:=|[=:\uff1a])\s{0,4})"
)
VALUE = re.compile(r"(?P<quote>\\*[\"'])?(?P<value>(?(quote)[^\"'\\\n]+|[^\s\"',;&}\])]+))")
FLAG = re.compile(r"(?<![\w-])--?(?P<name>[A-Za-z][A-Za-z0-9-]{1,60})(?P<sign>\s+)(?![\s-])")
# Every text with a secret has one of these: a telling word, an address, or something long without a space.
SUSPECT = re.compile(
    r"(?i)token|secret|pass|pwd|key|auth|cred|cookie|dsn|jwt|sas|session|sig|webhook|connection|@|[\w.~/+=-]{12}"
)
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# What a terminal may obey: C0 without line breaks and tabs, C1, and the marks that change the direction of a text.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean_text(text: str) -> str:
    """The text without secrets and without control characters."""
    return printable(redact_text(text))


def printable(text: str) -> str:
    """The text with each control character written as its number: `\\x1b` for an escape."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def redact_text(text: str) -> str:
    """The text with everything that looks like a credential replaced by `[hidden]`."""
    if not SUSPECT.search(text):
        return text
    text = AUTHORIZATION.sub(lambda found: found[1] + HIDDEN, text)
    for shape in SHAPES:
        text = shape.sub(HIDDEN, text)
    return _without_values(FLAG, _without_values(NAMED, text))


def redact(value: Any) -> Any:
    """A JSON value of the same shape with clean texts and hidden secrets."""
    if isinstance(value, dict):
        return {key: _redacted(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    return clean_text(value) if isinstance(value, str) else value


def _redacted(value: Any, key: str) -> Any:
    """What stands below a key. A webhook's address is a secret: whoever knows it can write there."""
    if key == "notify" and isinstance(value, list | tuple):
        value = [{**entry, "url": HIDDEN} if isinstance(entry, dict) and "url" in entry else entry for entry in value]
    return _hidden(value, key) if is_secret_name(key) else redact(value)


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether the value of a variable, key or option of this name is secret."""
    words = _words(name)
    if not words:
        return False
    if words[-1] not in WORDS and " ".join(words[-2:]) not in PAIRS and not ENDINGS.search(words[-1]):
        return False
    return words[-1] not in ("token", "tokens") or not VOCABULARY.intersection(words)


def _words(name: str) -> list[str]:
    """The words of a name: client, secret of `clientSecret`, `CLIENT_SECRET` or `client-secret-value`."""
    words = [word.lower() for word in re.split(r"[^A-Za-z0-9]+", HUMP.sub("_", name)) if word]
    while len(words) > 1 and words[-1] in FILLERS:
        words.pop()
    return words


def _hidden(value: Any, key: Any) -> Any:
    """Hides everything below a secret name. Numbers stay when they count something."""
    if isinstance(value, dict):
        return {inner: _hidden(below, key) for inner, below in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(inner, key) for inner in value]
    if isinstance(value, str):
        return HIDDEN if value else value
    secret_number = isinstance(value, int | float) and not isinstance(value, bool) and _words(str(key))[-1] in NUMERIC
    return HIDDEN if secret_number else value


def _without_values(names: re.Pattern[str], text: str) -> str:
    """Hides the values behind secret names. A name may itself be the value of another name: `env: HF_TOKEN=…`."""
    parts, copied, at = [], 0, 0
    while found := names.search(text, at):
        at = found.end()
        value = VALUE.match(text, at) if is_secret_name(found["name"]) else None
        if value and _is_secret_value(found, value):
            parts += [text[copied : value.start("value")], HIDDEN]
            copied = at = value.end("value")
    return "".join([*parts, text[copied:]])


def _is_secret_value(name: re.Match[str], value: re.Match[str]) -> bool:
    text = value["value"]
    if text.lower() in PLAIN_VALUES or text.startswith(("{", "[", "(")):
        return False
    if value["quote"] is None and name["sign"] == ": " and re.fullmatch(r"[a-z]{1,4}", text):
        return False  # a word of a sentence
    last = _words(name["name"])[-1]
    if text.replace(".", "", 1).isdigit():
        return last in NUMERIC
    return last != "tokens" or any(character.isdigit() for character in text)
