"""`gemfleet version`"""

from __future__ import annotations

import typer

from .options import Json

PACKAGES = ("gemfleet", "ray", "torch", "transformers", "peft", "datasets")


def version(as_json: Json = False) -> None:
    """Print the versions of gemfleet and of the libraries it needs. Give them when you report a problem."""
    import json
    import platform
    from importlib.metadata import version as installed

    versions = {"python": platform.python_version(), **{package: installed(package) for package in PACKAGES}}
    if as_json:
        typer.echo(json.dumps(versions, indent=2))
    else:
        typer.echo("\n".join(f"{name:13} {number}" for name, number in versions.items()))


def print_version(asked: bool) -> None:
    """`gemfleet --version`"""
    from importlib.metadata import version as installed

    if asked:
        typer.echo(f"gemfleet {installed('gemfleet')}")
        raise typer.Exit
