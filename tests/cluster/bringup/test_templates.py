"""Templates for Kubernetes, Slurm and the clouds: valid by their schemas, and saying what the description says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from gemfleet.cluster.bringup.description import ClusterDescription
from gemfleet.cluster.bringup.sections import SlurmSection
from gemfleet.cluster.bringup.slurm_queue import filled_in
from gemfleet.cluster.bringup.templates.render import KINDS, render
from gemfleet.cluster.errors import ClusterError
from support.kuberay_schema import SCHEMAS
from typer.testing import CliRunner

RUN = "train:\n  model: demo\n  data: {train: demo}\n"
DESCRIPTION = {
    "name": "lab",
    "environment": {"NCCL_DEBUG": "WARN"},
    "kubernetes": {
        "namespace": "training",
        "image": "registry.example.org/gemfleet:0.1.0",
        "node_selector": {"gpu": "h100"},
        "queue": "gpus",
        "storage_class": "fast",
    },
    "slurm": {"partition": "gpu", "account": "lab"},
    "gcp": {
        "region": "us-central1",
        "zone": "us-central1-a",
        "project": "a-project",
        "head_type": "n2-standard-8",
        "worker_type": "a3-highgpu-8g",
    },
}


@pytest.fixture
def description() -> ClusterDescription:
    return ClusterDescription.model_validate(DESCRIPTION)


def documents(kind: str, description: ClusterDescription, gpus: int = 16) -> dict[str, Any]:
    """By kind, each valid by its schema."""
    found = list(yaml.safe_load_all(render(kind, description, gpus, RUN)))
    for document in found:
        jsonschema.validate(document, SCHEMAS[document["kind"]])
    return {document["kind"]: document for document in found}


def test_a_ray_cluster_has_gpus_token_shared_memory_probes_and_a_disk(description: ClusterDescription) -> None:
    found = documents("ray-cluster", description)
    assert found["RayCluster"]["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    spec = found["RayCluster"]["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    (group,) = spec["workerGroupSpecs"]
    assert (group["replicas"], group["rayStartParams"]["num-gpus"]) == (2, "8")
    worker, head = group["template"]["spec"], spec["headGroupSpec"]["template"]["spec"]
    assert worker["nodeSelector"] == {"gpu": "h100"}
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    for pod in (worker, head):
        (container,) = pod["containers"]
        assert container["image"] == "registry.example.org/gemfleet:0.1.0"
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert {"name": "NCCL_DEBUG", "value": "WARN"} in container["env"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (claim,) = (volume["persistentVolumeClaim"] for volume in head["volumes"] if "persistentVolumeClaim" in volume)
    assert claim["claimName"] == found["PersistentVolumeClaim"]["metadata"]["name"]
    assert {"name": "GEMFLEET_HOME", "value": "/state"} in head["containers"][0]["env"]
    assert {"name": "state", "mountPath": "/state"} in head["containers"][0]["volumeMounts"]


def test_a_ray_job_carries_its_configuration_and_keeps_its_driver_on_the_head(description: ClusterDescription) -> None:
    found = documents("ray-job", description)
    assert found["ConfigMap"]["data"]["run.yaml"] == RUN
    spec = found["RayJob"]["spec"]
    assert spec["entrypoint"] == "gemfleet train /config/run.yaml"
    assert not [key for key in spec if key.startswith("entrypointNum") or key == "entrypointResources"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "config", "configMap": {"name": found["ConfigMap"]["metadata"]["name"]}} in head["volumes"]


def test_the_schema_refuses_a_misspelt_field(description: ClusterDescription) -> None:
    """The check above can fail."""
    cluster = documents("ray-cluster", description)["RayCluster"]
    cluster["spec"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        jsonschema.validate(cluster, SCHEMAS["RayCluster"])


@pytest.mark.parametrize("kind", ["aws", "gcp"])
def test_cloud_templates_are_valid_for_rays_launcher(kind: str, description: ClusterDescription) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(render(kind, description, 16, None))
    prepared = prepare_config(config)
    validate_config(prepared)
    worker = prepared["available_node_types"]["worker"]
    assert (worker["min_workers"], worker["resources"]["GPU"]) == (2, 8)
    starts = [config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]]
    assert all("export RAY_AUTH_MODE='token';" in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**prepared, "head_nod_type": "x"})


@pytest.mark.parametrize("config", [None, RUN])
def test_a_slurm_script_says_what_the_description_says(
    description: ClusterDescription, tmp_path: Path, config: str | None
) -> None:
    """tests/hosts/test_slurm.py has a real Slurm carry it out."""
    text = render("slurm", description, 16, config)
    lines = {line for line in text.splitlines() if line.startswith("#SBATCH")}
    assert lines >= {"#SBATCH --nodes=2", "#SBATCH --gpus-per-node=8", "#SBATCH --partition=gpu", "#SBATCH --exclusive"}
    assert lines >= {"#SBATCH --signal=B:TERM@300", "#SBATCH --requeue", "#SBATCH --open-mode=append"}
    assert "export NCCL_DEBUG=WARN" in text
    assert (RUN in text) is (config is not None)
    assert not re.search("@[A-Z]+@", text)
    (tmp_path / "run.sh").write_text(text)
    subprocess.run(["bash", "-n", str(tmp_path / "run.sh")], check=True)


FAKES = {
    "scontrol": "case $2 in hostnames) printf 'n1\\nn2\\n';; node) echo '   NodeAddr=n2 NodeHostName=n2';; esac",
    "squeue": "true",
    # A step on one node is carried out; that of Ray stays, and that which looks for the run finds none.
    "srun": '[[ $1 == --overlap ]] && exec "${@:5}" || { echo "srun $*" >> $CALLS; [[ "$*" != *ray* ]] || sleep 30; }',
    "python": "[[ $1 == -c ]] && echo a-token || echo '\"10.0.0.1\"'",
    "gemfleet": 'echo "gemfleet $* $RAY_ADDRESS $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> $CALLS; exit $CODE',
}


@pytest.mark.parametrize("code", [0, 7])
def test_the_slurm_script_starts_ray_trains_and_ends_as_the_run_ends(
    description: ClusterDescription, tmp_path: Path, code: int
) -> None:
    """By a real bash, with programs of Slurm's names that note how they are called."""
    for name, body in FAKES.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
    calls = tmp_path / "calls"
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CALLS": str(calls),
        "CODE": str(code),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "5",
        "SLURM_CPUS_PER_TASK": "32",
    }
    script = tmp_path / "run.sh"
    script.write_text(render("slurm", description, 16, None))
    process = subprocess.Popen(["bash", str(script), "run.yaml"], env=environment, start_new_session=True)
    assert process.wait(timeout=30) == code
    os.killpg(process.pid, 9)  # Slurm ends the steps with the job
    noted = calls.read_text()
    assert "gemfleet train run.yaml --id slurm-5 10.0.0.1:6379 token a-token" in noted
    assert "--nodes=2 --ntasks-per-node=1" in noted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "calls", "run.sh"]  # the token is in no file


SINFO = (
    "cpu*|(null)|64|infinite\ngpu|gpu:h100:8(S:0-1)|128|2-00:00:00\ngpu|gpu:h100:4|96+|2-00:00:00\nold|gpu:2|16|30:00\n"
)


def test_what_slurm_says_stands_for_what_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sinfo = tmp_path / "sinfo"
    sinfo.write_text(f"#!/bin/bash\nprintf '{SINFO}'\n")
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = filled_in(SlurmSection(partition="gpu", cpus_per_node=16))
    assert (found.gpus_per_node, found.cpus_per_node, found.time_limit) == (4, 16, "2-00:00:00")
    assert filled_in(SlurmSection(partition="old")).time_limit == "00:30:00"
    with pytest.raises(
        ClusterError, match="the default partition has no GPUs by `sinfo`; partitions with GPUs: gpu, old"
    ):
        filled_in(SlurmSection())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_gpus_that_do_not_fill_whole_machines_are_refused(kind: str, description: ClusterDescription) -> None:
    with pytest.raises(ClusterError, match=r"is no multiple of \w+\.gpus_per_\w+, 8"):
        render(kind, description, 12, RUN)


def test_the_command_prints_a_template_and_says_what_is_missing(tmp_path: Path) -> None:
    from gemfleet.launcher.cli import app

    result = CliRunner().invoke(app, ["cluster", "manifest", "--gpus", "16"])
    assert result.exit_code == 0
    assert [d["kind"] for d in yaml.safe_load_all(result.stdout)] == ["PersistentVolumeClaim", "RayCluster"]
    hosts = tmp_path / "hosts.yaml"
    hosts.write_text("name: other\nkubernetes: {gpus_per_pod: 4}\n")
    result = CliRunner().invoke(app, ["cluster", "manifest", "--gpus", "4", "--hosts", str(hosts)])
    assert "other-state" in result.stdout
    result = CliRunner().invoke(app, ["cluster", "manifest", "--gpus", "8", "--kind", "ray-job"])
    assert isinstance(result.exception, ClusterError)
