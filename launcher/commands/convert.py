"""`gemfleet convert`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Request = Annotated[Path, typer.Argument(metavar="REQUEST", help="The platform's JSON file.", show_default=False)]


def convert(request: Request) -> None:
    """Write the platform's request as a configuration file, with the request's key beside each line.

    Starts nothing, and writes to the standard output only. `gemfleet train` also reads the request itself.

    Examples:

      gemfleet convert request.json > run.yaml
    """
    from gemfleet.launcher.config.load import refuse
    from gemfleet.launcher.config.platform.convert import convert as convert_request
    from gemfleet.launcher.config.platform.write_yaml import to_yaml
    from gemfleet.train.config.load import read_mapping
    from gemfleet.train.config.train_file import is_platform_request
    from gemfleet.train.errors import UserError

    content = read_mapping(request)
    if not is_platform_request(content):
        raise UserError(f"{request} is not a request of the platform; give its JSON file, which has experiment_name")
    conversion = convert_request(content)
    refuse(conversion, request)
    typer.echo(to_yaml(conversion, request.name), nl=False)
