"""How many encoders have room, and nodes that an autoscaler starts because a run asks for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from stella_ray.pipeline.nodes import room
from tests.jobs.test_submit import RAY, free_ports


@pytest.mark.parametrize(
    ("nodes", "gpus", "found"),
    [
        ([], 1, 0),
        ([{"CPU": 0.0}], 1, 0),
        ([{"CPU": 8.0, "GPU": 4.0}], 1, 4),
        ([{"CPU": 5.0, "GPU": 4.0}], 1, 3),  # two CPUs are the tasks'
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}], 0.5, 4),
        ([{"CPU": 2.0, "GPU": 0.5}], 1, 0),
        ([{"CPU": 64.0}, {"CPU": 1.0, "GPU": 8.0}], 1, 1),  # a node's GPUs need its own CPUs
        ([{"CPU": 4.0}, {"CPU": 4.0}], 0, 6),
    ],
)
def test_encoders_have_room_where_gpus_and_cpus_are_on_one_node(
    nodes: list[dict[str, float]], gpus: float, found: int
) -> None:
    assert room(nodes, gpus, cpus=1.0, beside=2.0) == found


SIZING = """
import sys
from stella_ray.pipeline.cluster import PoolSettings, cluster, size_pool
with cluster():
    print(size_pool(PoolSettings(encoders=3, gpus_per_encoder=1, wait_seconds=90, spot_seconds=8)))
"""


@pytest.fixture
def autoscaling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head without CPUs, and Ray's own autoscaler with two node types to start: spot and not.

    Ray's simulated provider starts real nodes as processes; of spot it has none.
    """
    folder = tmp_path_factory.mktemp("as")
    gpu_node = {"node_config": {}, "min_workers": 0, "max_workers": 2}
    commands = ["initialization", "setup", "head_setup", "worker_setup"]
    commands += ["head_start_ray", "worker_start_ray"]
    config = {
        **{f"{name}_commands": [] for name in commands},
        "file_mounts": {}, "cluster_synced_files": [], "docker": {},
        "cluster_name": "simulated", "max_workers": 4, "upscaling_speed": 8,
        "idle_timeout_minutes": 5, "auth": {"ssh_user": "u"}, "head_node_type": "ray.head.default",
        "provider": {"type": "external", "module": "no_spot.NoSpot", "launch_multiple": True,
                     "head_node_id": FAKE_HEAD_NODE_ID},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "spot": gpu_node | {"priority": 1, "resources": {"CPU": 4, "GPU": 1}},
            "on_demand": gpu_node
            | {"priority": 0, "resources": {"CPU": 4, "GPU": 1, "on_demand": 1}},
        },
    }  # fmt: skip
    (folder / "no_spot.py").write_text(
        "from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider\n"
        "class NoSpot(FakeMultiNodeProvider):\n"
        "    def create_node_with_resources_and_labels(self, config, tags, *rest):\n"
        "        if tags['ray-user-node-type'] == 'spot':\n"
        "            raise RuntimeError('InsufficientInstanceCapacity')\n"
        "        return super().create_node_with_resources_and_labels(config, tags, *rest)\n"
    )
    (folder / "config.json").write_text(json.dumps(config))
    gcs, client = free_ports(2)
    # Ray puts sockets below its folder, and their paths may have 107 bytes at most.
    temporary = Path("/tmp") / f"as-{os.getpid()}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "disabled", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": "ray.head.default", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}",
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
    }  # fmt: skip
    head = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--num-cpus=0", "--num-gpus=0",
         "--node-ip-address=127.0.0.1", f"--port={gcs}", "--include-dashboard=false",
         f"--ray-client-server-port={client}", f"--temp-dir={temporary}", "--disable-usage-stats",
         "--object-store-memory=100000000", f"--autoscaling-config={folder / 'config.json'}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"127.0.0.1:{gcs}"
    finally:
        head.kill()
        head.wait()
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or [])
            if str(temporary) in words or f":{gcs}" in words:
                process.kill()


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_gets_nodes_on_demand_where_there_are_no_spot_ones(autoscaling: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": autoscaling, "RAY_AUTH_MODE": "disabled"}
    end = 6
    while end:  # the head needs some seconds
        done = subprocess.run(
            [sys.executable, "-c", SIZING], env=environment, capture_output=True, text=True,
            timeout=150, check=False,
        )  # fmt: skip
        if "can't be reached" not in done.stderr:
            break
        end -= 1
    assert done.returncode == 0, done.stderr[-2_000:]
    assert "(to 3 with late nodes) with 1 GPU each" in done.stdout
