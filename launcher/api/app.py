"""Builds the API's application from its routes and services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, Depends, FastAPI
from fastapi.security import HTTPBearer
from gemfleet.cluster.inventory import Node
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.launcher.runs.registry import registry_of

from . import openapi, problems
from .feed import Feed
from .gate import Gate
from .routes import checkpoints, cluster, dashboard, events, figures, health, logs, prometheus, results, runs, sweeps
from .services import ClusterView, Services, Submitter
from .settings import ApiSettings
from .submissions import ProcessSubmitter
from .totals import RunTotals

PREFIX = "/api/v1"
ROUTERS = (health, cluster, runs, sweeps, figures, events, logs, checkpoints, results)


class HeadAlone:
    """Sees no nodes: for an API outside a cluster."""

    def nodes(self) -> list[Node] | None:
        return None


def create_app(
    settings: ApiSettings, cluster_view: ClusterView | None = None, submitter: Submitter | None = None
) -> FastAPI:
    """The application for the registry of `settings.home`, which is made if missing.

    cluster_view: None: sees no nodes; submitter: None: starts runs as processes
    """
    registry = registry_of(settings.registry_path.parent)
    reader = RegistryReader(settings.registry_path)
    services = Services(
        settings=settings,
        registry=registry,
        reader=reader,
        feed=Feed(reader, settings.poll_seconds, registry.mark_interrupted),
        totals=RunTotals(reader),
        submitter=submitter or ProcessSubmitter(settings.home),
        cluster=cluster_view or HeadAlone(),
    )
    app = FastAPI(
        title="gemfleet",
        version=version("gemfleet"),
        summary="Runs of Gemma 3 fine-tuning on a Ray cluster: what they do, and stopping and starting them.",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,  # these pages load scripts from other sites
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.services = services
    documented = APIRouter(
        prefix=PREFIX, dependencies=[Depends(HTTPBearer(auto_error=False, description=openapi.TOKENS))]
    )
    for module in ROUTERS:
        documented.include_router(module.router)
    app.include_router(documented)
    for module in (health, prometheus, dashboard):
        app.include_router(module.router, include_in_schema=False)
    problems.install(app)
    openapi.install(app, settings)
    app.add_middleware(Gate, settings=settings)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    feed: Feed = app.state.services.feed
    watching = asyncio.create_task(feed.watch())
    try:
        yield
    finally:
        watching.cancel()
        feed.close()
