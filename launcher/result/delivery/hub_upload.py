"""Uploads a folder as one commit to Hugging Face. The token is HF_TOKEN, or the one that `hf auth login` stored."""

from __future__ import annotations

from pathlib import Path

from .errors import DeliveryError


def upload_folder(folder: Path, repository: str, branch: str | None, message: str) -> str:
    """Upload the folder. Makes a missing repository, as a private one. Returns the commit. Raises DeliveryError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=branch, commit_message=message, delete_patterns="*"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DeliveryError(f"the upload to {repository} on Hugging Face failed ({first})") from error
    return str(commit.oid)
