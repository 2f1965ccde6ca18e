"""`/metrics` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..metrics import RunCollector
from ..services import Needed

router = APIRouter()


@router.get("/metrics")
def metrics(services: Needed) -> Response:
    """The figures of runs that have not ended, and how many runs there are in each state."""
    collectors = CollectorRegistry()
    collectors.register(RunCollector(services.reader, services.totals))
    return Response(generate_latest(collectors), media_type=CONTENT_TYPE_LATEST)
