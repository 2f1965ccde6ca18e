"""Routes that say whether the API is alive, and whether it can answer."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from gemfleet.cluster.errors import ClusterError
from gemfleet.launcher.api.problems import ApiError, responses
from gemfleet.launcher.api.schemas import Health
from gemfleet.launcher.api.services import Needed

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    return Health(version=version("gemfleet"))


@router.get("/readyz", summary="Can the registry be read?", responses=responses(503))
def readyz(services: Needed) -> Health:
    try:
        services.reader.head()
    except ClusterError as error:
        raise ApiError(503, f"the registry cannot be read: {error}") from None
    return Health(version=version("gemfleet"))
