"""`gemfleet serve`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_PORT = 8266


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen at; any but a loopback one asks for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any free one.")] = DEFAULT_PORT,
    token: Annotated[bool, typer.Option("--token", help="Ask for a token on a loopback address too.")] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further name that requests may use for this host; may be repeated.")
    ] = None,
    data_root: Annotated[
        list[Path] | None,
        typer.Option(help="A folder below which submitted configurations may name paths; may be repeated."),
    ] = None,
    allow_source: Annotated[
        list[str] | None,
        typer.Option(help="An address below which they may name models and data (git+https://…, s3://…)."),
    ] = None,
    allow_delivery: Annotated[
        list[str] | None,
        typer.Option(help="An address below which their results may go (git+https://…, s3://…, hub:OWNER)."),
    ] = None,
    allow_report: Annotated[
        list[str] | None,
        typer.Option(help="An address below which their trackers and webhooks may be (https://…, wandb:ENTITY)."),
    ] = None,
) -> None:
    """Serve the dashboard, the status API and Prometheus metrics of this head node's runs, until Ctrl-C.

    It reads the registry on the disk. It needs no Ray, and may start and end at any time.

    Examples:

      gemfleet serve

      gemfleet serve --host 0.0.0.0 --allow-host head.example.org
    """
    from gemfleet.cluster.private import is_open
    from gemfleet.launcher.api.allowed import Allowed
    from gemfleet.launcher.api.app import create_app
    from gemfleet.launcher.api.server import bind, make_server
    from gemfleet.launcher.api.settings import ApiSettings, base_url, needs_tokens
    from gemfleet.launcher.api.tokens import load_tokens, token_folder
    from gemfleet.train.config.home import gemfleet_home

    home = gemfleet_home()
    tokens = load_tokens(home) if token or needs_tokens(host) else None
    settings = ApiSettings(
        home=home,
        host=host,
        port=port,
        tokens=tokens,
        allowed_hosts=frozenset(allow_host or ()),
        allowed=Allowed(
            tuple(data_root or ()), tuple(allow_source or ()), tuple(allow_delivery or ()), tuple(allow_report or ())
        ),
    )
    listener = bind(settings)
    server = make_server(create_app(settings))
    typer.echo(f"dashboard: {base_url(host, listener.getsockname()[1])}/")
    if tokens is not None and is_open(home):
        typer.echo(f"warning: other accounts can read {home}, which the token guards; run `chmod 700 {home}`", err=True)
    if tokens is not None:
        typer.echo(f"tokens: {token_folder(home)}/read.token to look, admin.token to change")
    server.run(sockets=[listener])
