"""Submits a run to a cluster as a Ray job, and follows the job's output."""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gemfleet.cluster.network import why_unreachable
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.train.config.paths import found_at
from gemfleet.train.errors import UserError

from .job_files import HIDDEN, Luggage

CONNECT_SECONDS = 5.0
# `ray job stop` sends SIGTERM, on which the run saves, and kills the job after this time (by default 3 s).
JOB_VARIABLES = {"RAY_JOB_STOP_WAIT_TIME_S": "300"}


def submit(
    config_path: Path,
    config: LaunchConfig,
    overrides: Sequence[str],
    address: str,
    resume: str | None = None,
    run_id: str | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
    tags: Sequence[str] = (),
) -> tuple[Any, str]:
    """Package the configuration's folder and submit `gemfleet train`. Returns (client, job id).

    run_id: the id of both the job and the run, so that a second submission is refused
    tell: called with sentences on what travels and what stays, before anything leaves; tags: as KEY=VALUE
    Raises UserError for inputs that do not travel, for a cluster that does not answer, and for an id that is taken.

    The job asks for no CPUs or GPUs. Otherwise Ray could start the driver on any node, and checkpoints must come home
    to the head.
    """
    folder = config_path.resolve().parent
    luggage = Luggage(folder, config_path.resolve().name)
    check_inputs_travel(config, luggage)
    client = connect(address)
    with tempfile.TemporaryDirectory(prefix="gemfleet-submit-") as package:
        for sentence in luggage.copy_to(Path(package)).sentences():
            tell(sentence)
        try:
            with token_told(address):
                job = client.submit_job(
                    entrypoint=entrypoint(config_path.name, overrides, resume, run_id, tags),
                    submission_id=run_id,
                    runtime_env={"working_dir": package, "env_vars": dict(JOB_VARIABLES)},
                    metadata={"gemfleet_config": config_path.name},
                )
        except RuntimeError as error:
            if run_id is None or "already exists" not in str(error):
                raise
            raise UserError(
                f"a job {run_id!r} was submitted to {address} already; choose another --id, or go on with that run: "
                f"`gemfleet submit {config_path.name} --resume {run_id}`"
            ) from None
    return client, str(job)


def entrypoint(
    config_name: str,
    overrides: Sequence[str],
    resume: str | None = None,
    run_id: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """The shell command of the job."""
    names = {"--resume": resume, "--id": run_id}
    named = [part for option, value in names.items() if value for part in (option, value)]
    settings = [part for override in overrides for part in ("--set", override)]
    settings += [part for tag in tags for part in ("--tag", tag)]
    return shlex.join(["gemfleet", "train", config_name, *settings, *named])


def connect(address: str) -> Any:
    """Ray's job client. Raises UserError within 5 s if nobody answers."""
    parts = urlsplit(address if "//" in address else f"http://{address}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--address {address!r} is not the address of a dashboard; give one like http://HEAD:8265")
    port = parts.port or 8265
    if reason := why_unreachable(parts.hostname, port, CONNECT_SECONDS):
        raise UserError(
            f"nobody answers at --address {address} ({reason}); give the head's dashboard, http://HEAD:8265, and see "
            "that `ray start --head` ran there"
        )
    from ray.job_submission import JobSubmissionClient

    try:
        with token_told(address):
            return JobSubmissionClient(f"{parts.scheme}://{parts.hostname}:{port}")
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"{address} answers, but not as a Ray dashboard: {str(error).splitlines()[0]}") from None


@contextmanager
def token_told(address: str) -> Iterator[None]:
    """Turn Ray's error about a missing or wrong token into a UserError that says how to give the token."""
    from ray.exceptions import AuthenticationError  # after `use_token`, which Ray reads when it is imported

    try:
        yield
    except AuthenticationError as error:
        said = str(error).splitlines()[0]
        asks = "asks for a token" if "required" in said.lower() else "does not take the token that it was given"
        raise UserError(
            f"the Ray at {address} {asks}; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a copy of the head's "
            "token file (on the head: ~/.ray/auth_token, or what its own RAY_AUTH_TOKEN_PATH names), or RAY_AUTH_TOKEN "
            "to the token itself. For a cluster of `gemfleet cluster up` give --hosts FILE instead of --address"
        ) from None


def default_address() -> str:
    """The dashboard's address that Ray's own `ray job` commands use, or this machine's."""
    return os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"


def check_inputs_travel(config: LaunchConfig, luggage: Luggage) -> None:
    """Raise UserError for a data file or model folder that does not travel with the job."""
    train = config.train
    inputs = train.data.paths() | {"train.model": train.model}
    inputs |= {} if train.adapter is None else {"train.adapter": train.adapter}
    folder = luggage.folder
    for field, value in inputs.items():
        local = folder / value  # `value` itself if it is an absolute path
        there = found_at(local)
        if not local.is_relative_to(folder) or not there:
            if found_at(value) and not Path(value).is_absolute():
                raise UserError(
                    f"{field} is {value!r}, which is in the working directory but not beside the configuration; a job "
                    f"takes only the configuration's folder {folder} along: put it there, or give its path on the head"
                )
            continue
        for path in (file for one in there for file in ([one] if one.is_file() else sorted(one.rglob("*")))):
            reason = luggage.why_not(path) if path.is_file() else None
            if reason and (reason != HIDDEN or path == local):  # a model folder may have hidden files
                raise UserError(
                    f"{field} is {value!r}, whose {path.name} does not travel with a job ({reason}); copy it to the "
                    "head node and give its absolute path there"
                )


def follow(client: Any, job: str, write: Callable[[str], None]) -> str:
    """Write the job's output as it comes, until the job ends. Returns its last status."""

    async def copy_output() -> None:
        async for text in client.tail_job_logs(job):
            write(text)

    asyncio.run(copy_output())
    return str(client.get_job_status(job).value)
