"""cluster.yaml is what the installed Ray's cluster launcher takes, and the published setup fits into it."""

import copy
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs import configs

FILE = Path(__file__).parent.parent / "cluster.yaml"


@pytest.fixture
def cluster() -> dict:
    return yaml.safe_load(FILE.read_text())


def test_ray_takes_it(cluster):
    validate_config(prepare_config(copy.deepcopy(cluster)))
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(cluster | {"max_worker": 1}))


def test_workers_start_from_none_and_only_those_for_training_have_gpus(cluster):
    prepared = prepare_config(cluster)
    head = prepared["available_node_types"].pop(prepared["head_node_type"])
    assert head["max_workers"] == 0
    assert {name: bool(node["resources"].get("GPU")) for name, node in prepared["available_node_types"].items()} == {
        "data": False,
        "train": True,
    }
    for node in prepared["available_node_types"].values():
        assert node["min_workers"] == 0 < node["max_workers"] <= cluster["max_workers"]
        assert node["resources"]["CPU"] > 0


@pytest.mark.parametrize("stage", ["vre", "osd"])
def test_the_published_training_fits(cluster, stage):
    asked = yaml.safe_load((configs.FOLDER / "paper" / f"{stage}.yaml").read_text())
    node = cluster["available_node_types"]["train"]
    on_one = min(
        node["resources"]["GPU"] // asked["gpus_per_worker"], node["resources"]["CPU"] // asked["cpus_per_worker"]
    )
    assert on_one * node["max_workers"] >= asked["workers"]


def test_every_node_installs_the_project_and_finds_the_shared_state(cluster):
    prepared = prepare_config(cluster)
    assert "." in prepared["file_mounts"].values()
    for role in ("head", "worker"):
        commands = "\n".join(prepared[f"{role}_setup_commands"] + prepared[f"{role}_start_ray_commands"])
        for part in ("make install", "OSDFACE_HOME=", "MLFLOW_TRACKING_URI=", "ray start"):
            assert part in commands
