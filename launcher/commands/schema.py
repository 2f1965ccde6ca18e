"""`gemfleet schema`"""

from __future__ import annotations

import typer


def schema() -> None:
    """Write the JSON Schema of a configuration file. With it, editors complete keys and mark mistakes.

    Editors with a YAML language server find it by the first line of the file, which `gemfleet init` writes:
    `# yaml-language-server: $schema=gemfleet.schema.json`.

    Examples:

      gemfleet schema > gemfleet.schema.json
    """
    import json

    typer.echo(json.dumps(config_schema(), indent=2, ensure_ascii=False))


def config_schema() -> dict[str, object]:
    """Every section and key with its meaning, default and bounds, in the 2020-12 dialect."""
    from gemfleet.launcher.config.schema import LaunchConfig

    content = LaunchConfig.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **content,
        "title": "A gemfleet run",
    }
