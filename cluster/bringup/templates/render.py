"""Renders templates by name as text."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import yaml
from gemfleet.cluster.errors import ClusterError

from ..description import ClusterDescription
from . import clouds, kubernetes, slurm


def render(kind: str, description: ClusterDescription, gpus: int, config: str | None) -> str:
    """The template `kind` for `gpus` GPUs in all.

    config: the content of a run's configuration, for `ray-job`, and for `slurm` where the script shall bring it along
    """
    return KINDS[kind](description, gpus, config)


def _ray_cluster(description: ClusterDescription, gpus: int, _: str | None) -> str:
    return _documents(kubernetes.ray_cluster(description, gpus, version("ray")))


def _ray_job(description: ClusterDescription, gpus: int, config: str | None) -> str:
    if config is None:
        raise ClusterError("a RayJob needs the run's configuration; give it with --config run.yaml")
    return _documents(kubernetes.ray_job(description, gpus, version("ray"), config))


def _slurm(description: ClusterDescription, gpus: int, config: str | None) -> str:
    return slurm.batch_script(description, gpus, config)


def _aws(description: ClusterDescription, gpus: int, _: str | None) -> str:
    return _documents([clouds.aws(description, gpus)])


def _gcp(description: ClusterDescription, gpus: int, _: str | None) -> str:
    return _documents([clouds.gcp(description, gpus)])


KINDS: dict[str, Callable[[ClusterDescription, int, str | None], str]] = {
    "ray-cluster": _ray_cluster,
    "ray-job": _ray_job,
    "slurm": _slurm,
    "aws": _aws,
    "gcp": _gcp,
}


def _documents(documents: list[dict[str, Any]]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and equal parts without references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _block)
