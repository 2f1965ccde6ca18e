"""Routes of the dashboard's files: our own, and plotly's JavaScript from its Python package."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from gemfleet.launcher.api.problems import ApiError

router = APIRouter()
TYPES = {"app.css": "text/css", "plotly.js": "text/javascript", "index.html": "text/html"}
DASHBOARD = files("gemfleet.launcher.api") / "dashboard"
MODULES = frozenset(found.name for found in DASHBOARD.iterdir() if found.name.endswith(".js"))


@router.get("/")
def index() -> FileResponse:
    return _answer(_own("index.html"), "text/html", "no-cache")


@router.get("/assets/{name}")
def asset(name: str) -> FileResponse:
    """One of the files in the dashboard's folder. A name in a request never becomes a path."""
    if name == "plotly.js":
        return _answer(plotly_script(), TYPES[name], "max-age=86400")
    if name == "app.css":
        return _answer(_own(name), TYPES[name], "no-cache")
    if name in MODULES:
        return _answer(_own(name), "text/javascript", "no-cache")
    raise ApiError(404, f"there is no asset {name[:40]!r}")


@cache
def plotly_script() -> Path:
    """The path of plotly.min.js in the installed package, found without importing that."""
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


def _own(name: str) -> Path:
    return Path(str(DASHBOARD / name))


def _answer(path: Path, media_type: str, caching: str) -> FileResponse:
    return FileResponse(path, media_type=media_type, headers={"Cache-Control": caching})
