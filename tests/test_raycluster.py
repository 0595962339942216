"""deploy/raycluster.yaml: valid, of one piece, and read by Ray's own autoscaler as it is meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import validate_config

from jobs.with_gpus import GpusJob
from tests.deploy_schema import KINDS

ROOT = Path(__file__).parents[1]
MANIFEST = (ROOT / "deploy/raycluster.yaml").read_text("utf-8")


def check(text: str) -> dict[str, Any]:
    """What Ray's autoscaler makes of the manifest, once each object has passed its schema."""
    objects = {one["kind"]: one for one in yaml.safe_load_all(text) if one is not None}
    assert objects.keys() == {"ServiceAccount", "RayCluster"}
    for kind, one in objects.items():
        jsonschema.Draft202012Validator(KINDS[kind]).validate(one)
    spec = objects["RayCluster"]["spec"]
    pods = [
        group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]
    account = objects["ServiceAccount"]["metadata"]["name"]
    assert {pod["serviceAccountName"] for pod in pods} == {account}
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1
    for pod in pods[1:]:
        mounted = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
        assert mounted.keys() == {one["name"] for one in pod["volumes"]}
        for variable in pod["containers"][0]["env"]:
            assert variable["value"].startswith(tuple(mounted.values()))
    objects["RayCluster"]["metadata"]["namespace"] = "default"
    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(objects["RayCluster"])
    validate_config(config)
    types = config["available_node_types"]
    spot, named = types["gpu-spot"], types["gpu-on-demand"]
    assert spot["priority"] > named["priority"]
    assert GpusJob(gpus=1).on_demand in named["resources"]
    assert GpusJob(gpus=1).on_demand not in spot["resources"]
    same = ("CPU", "GPU", "memory")
    assert [spot["resources"][name] for name in same] == [named["resources"][name] for name in same]
    assert spot["resources"]["GPU"] == 1
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    return config


def test_the_manifest_is_valid_and_rays_autoscaler_reads_spot_before_on_demand() -> None:
    config = check(MANIFEST)
    assert config["max_workers"] >= 8
    assert config["idle_timeout_minutes"] == 10


def test_it_has_the_ray_and_the_image_of_the_nightly_manifest() -> None:
    nightly = (ROOT / "deploy/nightly.yaml").read_text("utf-8")
    for what in (r"rayVersion: (\S+)", r"image: (\S*stella-ray:\S+)"):
        assert set(re.findall(what, MANIFEST)) == set(re.findall(what, nightly))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("enableInTreeAutoscaling: true", "enableInTreeAutoScaling: true"),
        ("version: v2", "version: v3"),
        ("upscalingMode: Aggressive", "upscalingMode: Fast"),
        ("priority: 1", "priority: one"),
        ("priority: 1", "priority: 0"),
        ("minReplicas: 0", "minimumReplicas: 0"),
        ('GPU: "1", on', 'GPU: "2", on'),
        ('CPU: "7", GPU', "CPU: 7, GPU"),
        ('on_demand: "1"', 'ondemand: "1"'),
        ("mode: token", "mode: disabled"),
        ("value: /cache/triton", "value: hf_token"),
        ("{name: cache, mountPath: /cache}", "{name: caches, mountPath: /cache}"),
        ('num-cpus: "0"', 'num-cpus: "2"'),
        ("karpenter.sh/capacity-type: spot}", "karpenter.sh/capacity-type: 1}"),
    ],
)
def test_a_manifest_with_a_mistake_is_found(right: str, wrong: str) -> None:
    assert right in MANIFEST
    with pytest.raises((jsonschema.ValidationError, AssertionError, KeyError)):
        check(MANIFEST.replace(right, wrong))
