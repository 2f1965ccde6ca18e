"""The route `/metrics` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response
from gemfleet.launcher.api.metrics import RunCollector
from gemfleet.launcher.api.services import Needed
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

router = APIRouter()


@router.get("/metrics")
def metrics(services: Needed) -> Response:
    """The figures of runs that have not ended, and the number of runs in each state."""
    collectors = CollectorRegistry()
    collectors.register(RunCollector(services.reader, services.totals))
    return Response(generate_latest(collectors), media_type=CONTENT_TYPE_LATEST)
