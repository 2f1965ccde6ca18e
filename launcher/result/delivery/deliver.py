"""Delivers a published folder: pushes it with git, or uploads it to Hugging Face or an object store."""

from __future__ import annotations

from pathlib import Path

from gemfleet.launcher.config.schema import DeliverConfig
from gemfleet.launcher.sources.address import check_address
from gemfleet.launcher.sources.git_command import Progress
from gemfleet.launcher.sources.objects import ObjectAddress, parse_object_address
from gemfleet.train.errors import UserError

from .git_push import push_folder
from .hub_upload import upload_folder
from .object_upload import upload_folder_to_store


def check_delivery(deliver: DeliverConfig | None) -> None:
    """Raise UserError for an address that the delivery would refuse. Called before anything starts."""
    if deliver is None or deliver.type == "hub":
        return
    if deliver.type == "git":
        check_address(deliver.repository, deliver.branch)
    else:
        store_address(deliver)


def store_address(deliver: DeliverConfig) -> ObjectAddress:
    """The folder of the object store: the branch's below the address. Raises UserError for another kind of address."""
    address = parse_object_address(deliver.repository)
    if address.scheme != deliver.type:
        raise UserError(
            f"output.deliver.repository is {deliver.repository!r}, but output.deliver.type is `{deliver.type}`; "
            f"give an address that begins with {deliver.type}://"
        )
    return address if deliver.branch is None else address.below(deliver.branch)


def deliver_folder(folder: Path, deliver: DeliverConfig, run_id: str, progress: Progress | None = None) -> str:
    """Copy `folder` to where `deliver` says. Returns a sentence that says so. Raises DeliveryError."""
    message = f"Adapter of the run {run_id}"
    if deliver.type in ("s3", "gs"):
        address = store_address(deliver)
        return f"delivered to {address}, {upload_folder_to_store(folder, address, message, progress)} files"
    if deliver.type == "git":
        commit = push_folder(folder, check_address(deliver.repository, deliver.branch), message, progress)
    else:
        commit = upload_folder(folder, deliver.repository, deliver.branch, message)
    return f"delivered to {deliver.repository}, branch {deliver.branch or 'main'}, commit {commit[:12]}"
