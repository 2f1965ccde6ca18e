"""Chooses how a published folder travels."""

from __future__ import annotations

from pathlib import Path

from ..config import DeliverConfig
from ..sources.address import check_address
from ..sources.git_command import Progress
from .git_push import push_folder
from .hub_upload import upload_folder


def check_delivery(deliver: DeliverConfig | None) -> None:
    """Raise UserError for an address that would be refused, before anything starts."""
    if deliver is not None and deliver.type == "git":
        check_address(deliver.repository, deliver.branch)


def deliver_folder(folder: Path, deliver: DeliverConfig, run_id: str, progress: Progress | None = None) -> str:
    """Take `folder` where `deliver` says; returns a sentence about it. Raises DeliveryError."""
    message = f"Adapter of the run {run_id}"
    if deliver.type == "git":
        commit = push_folder(folder, check_address(deliver.repository, deliver.branch), message, progress)
    else:
        commit = upload_folder(folder, deliver.repository, deliver.branch, message)
    return f"delivered to {deliver.repository}, branch {deliver.branch or 'main'}, commit {commit[:12]}"
