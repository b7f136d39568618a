"""Files of clusters and jobs: each is what Ray or KubeRay takes, and what the jobs ask for fits into it."""

import copy
import shlex
from pathlib import Path

import pytest
import ray
import yaml
from pydantic import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from jobs.submission import parsing, spec
from pipelines import cluster
from tests import kuberay

ROOT = Path(__file__).parent.parent.parent
KUBERAY = sorted((ROOT / "jobs" / "kuberay").glob("*.yaml"))
SPECS = sorted(path.relative_to(spec.FOLDER).with_suffix("").as_posix() for path in spec.FOLDER.rglob("*.yaml"))
JOBS = [path for path in KUBERAY if path.name.startswith("rayjob-")]
ONPREM = ROOT / "jobs" / "clusters" / "onprem.yaml"


def parsed(name: str) -> parsing.Parsed:
    return parsing.parse(spec.find(name, []).words(), ROOT)


def asked(name: str) -> list[parsing.Asked]:
    return parsed(name).asked


def resources(path: Path) -> list:
    return kuberay.check(path.read_text())


@pytest.mark.parametrize("name", SPECS)
def test_a_job_file_holds_a_command_that_parses_and_joins_its_cluster(name):
    words = parsed(name).words
    assert words[-2:] == ["--address", "auto"] or words[0] == "run"
    assert spec.find(name, []).name == name.replace("/", "-")


def test_there_are_job_files_for_every_step_of_the_paper_and_of_tiny():
    assert {"paper/synth", "paper/vre", "paper/osd", "paper/evaluate", "tiny/synth", "tiny/vre", "tiny/osd"} <= {*SPECS}


def test_the_published_setup_is_what_the_job_files_ask_for():
    assert [str(each) for each in asked("paper/vre")] == ["8 workers of 8 CPUs, 1 GPUs"]
    assert [str(each) for each in asked("paper/osd")] == ["2 workers of 8 CPUs, 1 GPUs"]
    assert [str(each) for each in asked("paper/synth")] == ["32 workers of 0.5 CPUs"]


@pytest.mark.parametrize("name", SPECS)
def test_job_files_fit_the_aws_cluster(name):
    nodes = cluster.launched(ROOT / "cluster.yaml")
    assert len(nodes) == 10
    assert all(each.fits(nodes) for each in asked(name))


def test_a_training_of_more_gpus_than_the_aws_cluster_has_does_not_fit():
    nodes = cluster.launched(ROOT / "cluster.yaml")
    line = shlex.split("train vre --config paper --data /p --out /o --workers 9")
    assert not parsing.parse(line, ROOT).asked[0].fits(nodes)


def test_ray_takes_the_cluster_of_machines_that_are_there():
    config = yaml.safe_load(ONPREM.read_text())
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    for part in ("make install", "OSDFACE_HOME=", "MLFLOW_TRACKING_URI=", "mountpoint"):
        assert part in "\n".join(prepared["setup_commands"])
    with pytest.raises(Exception, match="worker_ip"):
        validate_config(prepare_config(config | {"worker_ip": []}))


def test_machines_as_its_comment_has_them_hold_the_published_setup():
    nodes = [{"CPU": 64, "GPU": 8}, {"CPU": 16, "GPU": 2}, {"CPU": 16}]
    assert all(each.fits(nodes) for name in SPECS for each in asked(name))


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_kuberay_manifests_have_documented_fields_alone(path):
    assert resources(path)


def test_every_kind_of_resource_is_there():
    kinds = {resource.kind for path in KUBERAY for resource in resources(path)}
    assert kinds == {"RayCluster", "RayJob", "RayService", "PriorityClass"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("maxReplicas: 2", "maxReplica: 2"),
        ("minReplicas: 0", "minReplicas: 3"),
        ("upscalingMode: Default", "upscalingMode: Fast"),
        ("backoffLimit: 3", "backoffLimit: '3'"),
        ("num-cpus", "num-cpu"),
        ("operator: Exists", "operator: Equal"),
        ('"48", memory: 256Gi, nvidia.com/gpu: "4"}\n', '"48", memory: 256Gi, nvidia.com/gpu: "8"}\n'),
        ("apiVersion: ray.io/v1", "apiVersion: ray.io/v1alpha1"),
        ("terminationGracePeriodSeconds", "terminationGracePeriod"),
        ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false"),
        ("claimName: osdface", "claim: osdface"),
    ],
)
def test_the_check_refuses_what_kuberay_would(old, new):
    text = (ROOT / "jobs" / "kuberay" / "rayjob-vre.yaml").read_text()
    assert old in text
    with pytest.raises(ValidationError):
        kuberay.check(text.replace(old, new, 1))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_rayjob_runs_its_job_file_and_has_the_nodes_for_it(path):
    (job,) = resources(path)
    name = path.stem.replace("rayjob-", "paper/")
    assert shlex.split(job.spec.entrypoint) == ["osdface", *parsed(name).words]
    assert all(each.fits(job.spec.rayClusterSpec.nodes()) for each in asked(name))


def specs_of(path: Path) -> list[kuberay.ClusterSpec]:
    found = []
    for resource in resources(path):
        if isinstance(resource, kuberay.RayCluster):
            found.append(resource.spec)
        elif isinstance(resource, kuberay.RayJob):
            found.append(resource.spec.rayClusterSpec)
        elif isinstance(resource, kuberay.RayService):
            found.append(resource.spec.rayClusterConfig)
    return found


@pytest.mark.parametrize("path", [p for p in KUBERAY if p.stem != "priorities"], ids=lambda path: path.stem)
def test_clusters_scale_tolerate_and_end_as_they_should(path):
    (priorities,) = (p for p in KUBERAY if p.stem == "priorities")
    classes = {resource.metadata.name for resource in resources(priorities)}
    for found in specs_of(path):
        assert found.rayVersion == ray.__version__
        assert found.enableInTreeAutoscaling
        head = found.headGroupSpec
        assert head.rayStartParams["num-cpus"] == "0"
        assert head.template.spec.containers[0].readinessProbe
        assert head.template.spec.containers[0].livenessProbe
        for group in found.workerGroupSpecs:
            pod = group.template.spec
            has_gpus = group.nodes()[0]["GPU"] > 0
            assert any(toleration.key == "nvidia.com/gpu" for toleration in pod.tolerations) == has_gpus
            assert pod.priorityClassName in classes
            grace = pod.terminationGracePeriodSeconds
            (command,) = pod.containers[0].lifecycle.preStop.exec.command[2:]
            assert int(command.split()[-1]) < grace


def test_the_standing_cluster_holds_every_job():
    (found,) = specs_of(ROOT / "jobs" / "kuberay" / "raycluster.yaml")
    assert all(each.fits(found.nodes()) for name in SPECS for each in asked(name))


def test_serve_takes_the_endpoints_configuration():
    (service,) = resources(ROOT / "jobs" / "kuberay" / "rayservice.yaml")
    config = yaml.safe_load(service.spec.serveConfigV2)
    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.route_prefix == "/"
    scaling = config["applications"][0]["deployments"][0]["autoscaling_config"]
    (group,) = service.spec.rayClusterConfig.workerGroupSpecs
    assert scaling["max_replicas"] <= group.maxReplicas
