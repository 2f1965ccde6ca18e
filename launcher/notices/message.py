"""What a webhook is told of a run, and how the message is signed (https://www.standardwebhooks.com)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gemfleet.cluster.redaction import redact
from gemfleet.cluster.registry.run_queries import RunQueries
from gemfleet.cluster.registry.run_records import Run

SECRET_PREFIX = "whsec_"


def facts_of(registry: RunQueries, run: Run, what: str) -> dict[str, Any]:
    """The message of format `json`, without secrets. what: a state, or `stalled`"""
    step = registry.latest_metrics(run.id, "step") or {}
    scored = registry.latest_metrics(run.id, "eval") or {}
    facts = {
        "id": run.id,
        "name": run.name,
        "state": str(run.state),
        "reason": run.reason,
        "created_at": run.created_at,
        "ended_at": run.ended_at,
        "step": step.get("step"),
        "total_steps": step.get("total_steps"),
        "loss": step.get("loss"),
        "eval_loss": scored.get("eval_loss"),
    }
    when = datetime.fromtimestamp(run.updated_at, UTC).isoformat()
    return {"type": f"run.{what}", "timestamp": when, "data": redact(facts)}


def body_of(facts: Mapping[str, Any], form: str) -> bytes:
    """The body of a request. form: `json` or `slack`"""
    return json.dumps({"text": sentence(facts)} if form == "slack" else facts).encode()


def sentence(facts: Mapping[str, Any]) -> str:
    """The message in Slack's markup."""
    run, what = facts["data"], str(facts["type"]).removeprefix("run.")
    figures = [f"step {run['step']} of {run['total_steps']}"] if run["step"] is not None else []
    figures += [
        f"{name} {run[key]:.4f}"
        for name, key in (("loss", "loss"), ("evaluation loss", "eval_loss"))
        if isinstance(run[key], int | float)
    ]
    text = f"{run['id']} {what}" + (f": {run['reason']}" if run["reason"] else "")
    text += f" ({', '.join(figures)})" if figures else ""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def message_id(facts: Mapping[str, Any]) -> str:
    """The same for each try of one message, and another for each message."""
    return f"msg_{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}"


def headers(name: str, body: bytes, seconds: int, secret: str | None) -> dict[str, str]:
    """The request's headers. name: the message's id; seconds: since the epoch, now; secret: None: unsigned

    The signature is of id, time and body, so that a receiver can refuse what is old.
    """
    found = {"content-type": "application/json", "webhook-id": name, "webhook-timestamp": str(seconds)}
    if secret is not None:
        signed = hmac.new(_key(secret), b".".join((name.encode(), str(seconds).encode(), body)), hashlib.sha256)
        found["webhook-signature"] = f"v1,{base64.b64encode(signed.digest()).decode()}"
    return found


def _key(secret: str) -> bytes:
    """The key that a secret stands for: `whsec_` and base64, or the text itself."""
    if secret.startswith(SECRET_PREFIX):
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    return secret.encode()
