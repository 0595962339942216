"""cluster.yaml and deploy/on-premises.yaml: Ray's own schema, loader and AWS provider take them."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.aws import node_provider as aws
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
    CloudResourceMonitor,
)
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

from jobs.with_gpus import GpusJob, bundles
from stella_ray.errors import SettingsError

ROOT = Path(__file__).parents[1]
FILES = {"aws": ROOT / "cluster.yaml", "local": ROOT / "deploy/on-premises.yaml"}
PLACEHOLDER = r"<([A-Z][A-Z_0-9]+)>"
VALUES = {
    "REGION": "eu-central-1", "HEAD_PROFILE": "stella-head", "WORKER_PROFILE": "stella-worker",
    "REPOSITORY": "https://git.example.org/stella-ray.git", "VERSION": "v0.1.0",
    "HEAD_IP": "10.0.0.1", "WORKER_IP_1": "10.0.0.2", "WORKER_IP_2": "10.0.0.3", "USER": "stella",
    "SSH_KEY": "~/.ssh/key",
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with what the files take from it; the launcher looks for the rest in the checkout."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("0" * 64, "utf-8")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/key").write_text("a key", "utf-8")
    return tmp_path


def filled(text: str, **values: str) -> dict[str, Any]:
    """The file as its user has filled it in."""
    found: dict[str, Any] = yaml.safe_load(
        re.sub(PLACEHOLDER, lambda found: {**VALUES, **values}[found[1]], text)
    )
    return found


def checked(text: str) -> dict[str, Any]:
    """What `ray up` makes of a file before it asks a cloud."""
    config = prepare_config(filled(text, AMI_ID="ami-0123456789abcdef0"))
    validate_config(config)
    hash_runtime_conf(config["file_mounts"], None, config)  # reads all that goes to the nodes
    return config


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_every_placeholder_is_explained_at_the_head_of_its_file(path: Path) -> None:
    text = path.read_text("utf-8")
    head, body = re.split(r"^(?=cluster_name:)", text, maxsplit=1, flags=re.M)
    assert set(re.findall(PLACEHOLDER, body)) == set(re.findall(PLACEHOLDER, head))
    assert all(f"#   <{name}>" in head or f", <{name}>" in head
               for name in re.findall(PLACEHOLDER, body))  # fmt: skip


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_rays_schema_and_loader_take_the_file(path: Path, home: Path) -> None:
    config = checked(path.read_text("utf-8"))
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [config[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]
    assert all(". ~/stella-ray/deploy/node.env;" in line for line in starts)
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in starts[0]
    assert not re.search(r"AKIA|aws_secret|_KEY_ID|password", path.read_text("utf-8"), re.I)
    installed = " ".join(config["worker_setup_commands"])
    assert "--branch v0.1.0 https://git.example.org/stella-ray.git" in installed
    assert "--constraint constraints.txt" in installed
    assert "| crontab -" in " ".join(config["head_setup_commands"])
    for line in [*config["head_setup_commands"], *installed.split("; "), *starts]:
        done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, check=False)
        assert done.returncode == 0, line


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("aws", "max_workers: 8\nup", "max_worker: 8\nup"),
        ("aws", "head_node_type: head", "head_node_type: heads"),
        ("aws", "resources: {on_demand: 1}", "resources: {on_demand: lots}"),
        ("aws", "priority: 1", "priority: high"),
        ("aws", "setup_commands:\n", "set_up_commands:\n"),
        ("aws", "deploy/crontab\n", "deploy/crontabs\n"),
        ("local", "head_ip:", "head:"),
        ("local", "file_mounts:", "file_mount:"),
        ("local", "ssh_user: <USER>", "user: <USER>"),
    ],
)
def test_a_cluster_file_with_a_mistake_is_found(
    file: str, right: str, wrong: str, home: Path
) -> None:
    text = FILES[file].read_text("utf-8")
    assert right in text
    errors = (jsonschema.ValidationError, ValueError, OSError, click.ClickException)
    with pytest.raises(errors):
        checked(text.replace(right, wrong))


def test_a_nodes_environment_names_the_token_and_the_caches(home: Path) -> None:
    show = '. deploy/node.env; env; echo "first=${PATH%%:*}"'
    done = subprocess.run(
        ["bash", "-c", show], capture_output=True, text=True, check=True, cwd=ROOT,
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["first"] == f"{home}/stella-ray/.venv/bin"
    caches = [found[name] for name in ("HF_HOME", "STELLA_RAY_CACHE", "TRITON_CACHE_DIR")]
    assert len(set(caches)) == 3
    assert all(cache.startswith("/stella-ray/") for cache in caches)


def test_the_head_takes_the_nightly_crontab_with_its_own_address(home: Path) -> None:
    (line,) = filled(FILES["aws"].read_text("utf-8"), AMI_ID="x")["head_setup_commands"]
    (home / "bin").mkdir()
    (home / "bin/crontab").write_text('#!/bin/sh\ncat > "$HOME/installed"\n', "utf-8")
    (home / "bin/crontab").chmod(0o755)
    (home / "stella-ray-crontab").write_bytes((ROOT / "deploy/crontab").read_bytes())
    environment = {"HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", line], env=environment, check=True)
    mine, theirs = (home / "installed").read_text("utf-8"), (ROOT / "deploy/crontab").read_text()
    assert "\nRAY_ADDRESS=http://127.0.0.1:8265\n" in mine
    assert mine.splitlines()[-1] == theirs.splitlines()[-1]
    assert (home / "logs").is_dir()


@pytest.fixture
def ec2(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """moto's EC2 in this process, with what every account has and the two instance profiles."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws import utils

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", VALUES["REGION"])
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()
    with mock_aws():
        for name in ("HEAD_PROFILE", "WORKER_PROFILE"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=VALUES[name])
        yield boto3.client("ec2", region_name=VALUES["REGION"])
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()


def test_rays_aws_provider_starts_the_head_and_workers_of_both_kinds(ec2: Any) -> None:
    image = ec2.describe_images()["Images"][0]["ImageId"]
    config = filled(FILES["aws"].read_text("utf-8"), AMI_ID=image)
    config = _bootstrap_config(copy.deepcopy(config), no_config_cache=True)
    config.pop("head_node")
    validate_config(config)
    types = config["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    assert "GPU" not in types["head"]["resources"]
    for name in ("gpu_spot", "gpu_on_demand"):
        assert types[name]["resources"]["GPU"] == 1
        assert types[name]["resources"]["CPU"] == 8
    assert types["gpu_on_demand"]["resources"]["on_demand"] == 1
    assert "on_demand" not in types["gpu_spot"]["resources"]

    provider = aws.AWSNodeProvider(config["provider"], config["cluster_name"])
    for name in types:
        kind = {TAG_RAY_NODE_KIND: "head" if name == "head" else "worker"}
        provider.create_node(types[name]["node_config"], {TAG_RAY_USER_NODE_TYPE: name, **kind}, 1)
    found = {}
    for reservation in ec2.describe_instances()["Reservations"]:
        for instance in reservation["Instances"]:
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            found[tags[TAG_RAY_USER_NODE_TYPE]] = instance
    assert found.keys() == types.keys()
    assert [name for name, one in found.items() if one.get("InstanceLifecycle") == "spot"] == [
        "gpu_spot"
    ]
    assert found["head"]["InstanceType"] == "m7i.2xlarge"


def test_the_autoscaler_asks_for_spot_first(home: Path) -> None:
    config = checked(FILES["aws"].read_text("utf-8"))
    types = AutoscalingConfig(config).get_node_type_configs()
    assert types["gpu_spot"].priority > types["gpu_on_demand"].priority
    assert types["gpu_spot"].max_worker_nodes == config["max_workers"]


def test_rays_autoscaler_does_not_fall_back_after_a_failed_launch() -> None:
    """What cluster.yaml says of it; where this fails, Ray has learnt it and the comment is old."""
    monitor = CloudResourceMonitor()
    failed = {"instance_id": "i", "instance_type": "gpu_spot"}
    monitor.notify([InstanceUpdateEvent(new_instance_status=Instance.ALLOCATION_FAILED, **failed)])
    assert monitor.get_recoverable_resource_availabilities() == {}
    monitor.notify([InstanceUpdateEvent(new_instance_status=Instance.ALLOCATION_TIMEOUT, **failed)])
    assert monitor.get_recoverable_resource_availabilities() == {"gpu_spot": 0.0}


def test_what_spot_has_not_brought_is_asked_for_on_demand() -> None:
    assert bundles(3, 0, None) == [{"GPU": 1.0}] * 3
    assert bundles(3, 1, "on_demand") == [{"GPU": 1.0}] + [{"GPU": 1.0, "on_demand": 0.001}] * 2
    assert bundles(2, 8, "on_demand") == [{"GPU": 1.0}] * 2
    (cluster_type,) = (
        name
        for name, one in filled(FILES["aws"].read_text(), AMI_ID="x")[
            "available_node_types"
        ].items()
        if GpusJob(gpus=1).on_demand in one["resources"]
    )
    assert cluster_type == "gpu_on_demand"
    for least in (-1, 3):
        with pytest.raises(SettingsError, match=f"least_gpus {least} doesn't fit --gpus 2"):
            GpusJob(gpus=2, least_gpus=least)
