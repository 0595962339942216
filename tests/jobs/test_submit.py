"""`ray job submit -- python jobs/embed.py …` from a checkout, on a cluster of `ray start`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import lance
import psutil
import pytest

from tests.conftest import make_encoder
from tests.jobs.conftest import documents, rows_of
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


class Cluster:
    """A head node of two CPUs with ports and a folder of its own."""

    def __init__(self, folder: Path) -> None:
        # Another Ray on this machine, the test session's, has the usual ports.
        self.gcs, self.dashboard, client, *agents = [free_port() for _ in range(6)]
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment |= {
            "RAY_AUTH_MODE": "disabled",
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
            "RAY_TMPDIR": str(folder),
        }
        self.address = f"http://127.0.0.1:{self.dashboard}"
        self.folder = folder
        self.head = subprocess.Popen(
            [RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1",
             f"--port={self.gcs}", f"--dashboard-port={self.dashboard}",
             "--dashboard-host=127.0.0.1", f"--ray-client-server-port={client}",
             f"--dashboard-agent-listen-port={agents[0]}",
             f"--dashboard-agent-grpc-port={agents[1]}", f"--metrics-export-port={agents[2]}",
             f"--temp-dir={folder}", "--disable-usage-stats", "--object-store-memory=300000000"],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/api/version", timeout=2)
                return
            except OSError:
                if time.monotonic() > end or self.head.poll() is not None:
                    self.stop()
                    raise
                time.sleep(0.5)

    def submit(
        self, *words: object, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        command = [RAY, "job", "submit", "--address", self.address, "--working-dir", ".", *options]
        command += ["--", "python", "jobs/embed.py", *words]
        end = time.monotonic() + 60
        while True:
            done = subprocess.run(
                [str(word) for word in command], cwd=ROOT, env=self.environment,
                capture_output=True, text=True, timeout=240, check=False,
            )  # fmt: skip
            # The head answers some seconds before its agent takes jobs.
            if "No available agent" not in done.stderr or time.monotonic() > end:
                return done
            time.sleep(1)

    def stop_job(self, name: str) -> None:
        """What `ray job stop` asks for, without the seconds that it takes to start."""
        ask = urllib.request.Request(f"{self.address}/api/jobs/{name}/stop", method="POST")
        urllib.request.urlopen(ask, timeout=10).close()
        end = time.monotonic() + 60
        while self.last_job()["status"] in {"PENDING", "RUNNING"}:
            assert time.monotonic() < end
            time.sleep(0.2)

    def last_job(self) -> dict[str, object]:
        with urllib.request.urlopen(f"{self.address}/api/jobs/", timeout=10) as answer:
            jobs = [job for job in json.load(answer) if job["type"] == "SUBMISSION"]
        found: dict[str, object] = max(jobs, key=lambda job: job["start_time"])
        return found

    def stop(self) -> None:
        """Kill the processes of this cluster's folder alone (`ray stop` kills every Ray here)."""
        self.head.kill()
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.folder) in word for word in process.info["cmdline"] or []):
                process.kill()
        self.head.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # Ray puts sockets below its folder, and their paths may have 107 bytes at most.
    folder = Path(f"/tmp/sr{os.getpid()}")
    cluster = Cluster(folder)
    yield cluster
    cluster.stop()


def check_the_code_that_runs(ray_cluster: Cluster) -> None:
    """The uploaded package stands before an installed one in the driver and in every worker."""
    ours: dict[str, str] = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if "jobs/embed.py" in words or words[0].startswith("ray::"):
            with contextlib.suppress(psutil.Error):
                if str(ray_cluster.folder) in process.cwd():
                    ours[words[0]] = process.environ().get("PYTHONPATH", "")
                    assert ours[words[0]].split(":")[0] == process.cwd(), words
    assert {name.startswith("ray::") for name in ours} == {True, False}


def stop_in_the_middle(ray_cluster: Cluster, table: Path, flags: list[object]) -> int:
    """Start a job without waiting for it, stop it after two commits; the rows it has committed."""
    started = ray_cluster.submit(*flags, options=("--no-wait", "--submission-id", "stopped"))
    assert started.returncode == 0, started.stdout + started.stderr
    folder, end = Path(f"{table}.lance"), time.monotonic() + 90
    # The table's making is a version, and each commit one more.
    while len(list(folder.glob("_versions/*.manifest"))) < 3:
        assert time.monotonic() < end, ray_cluster.last_job()
        time.sleep(0.05)
    check_the_code_that_runs(ray_cluster)
    ray_cluster.stop_job("stopped")
    assert ray_cluster.last_job()["status"] == "STOPPED"
    left = lance.dataset(str(folder))
    assert not left.tags.list()  # nothing is published, and what is committed can be read
    ids = left.to_table(["doc_id"])["doc_id"].to_pylist()
    assert len(ids) == len(set(ids))
    (report,) = table.parent.glob("runs/*/report.json")
    assert json.loads(report.read_text("utf-8"))["outcome"] == "unfinished"
    return len(ids)


def test_a_submitted_job_embeds_publishes_and_reports(
    ray_cluster: Cluster,
    tmp_path: Path,
    write_jsonl: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = make_encoder(tmp_path / "model", layers=8)  # slow enough to be stopped at work
    for shard in range(12):
        write_jsonl(tmp_path / f"corpus/{shard}.jsonl", documents(40, first=40 * shard))
    flags: list[object] = ["--corpus", tmp_path / "corpus", "--table", tmp_path / "db/docs"]
    flags += ["--encoder.path", encoder, "--report", tmp_path / "report.json"]
    small = ["--pool.window_rows", "16", "--pool.rows_per_commit", "16"]
    kept = stop_in_the_middle(ray_cluster, tmp_path / "db/docs", [*flags, *small])
    assert 0 < kept < 480

    # The lock is free at once, and the next run embeds what is missing alone.
    done = ray_cluster.submit(*flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{480 - kept} embedded, {kept} unchanged" in done.stdout
    assert ray_cluster.last_job()["status"] == "SUCCEEDED"
    assert json.loads((tmp_path / "report.json").read_text())["outcome"] == "published"
    assert len(rows_of(tmp_path / "db/docs")) == 480

    # A failure: its line and code are in the log, the state and the report; the CLI itself says 1.
    write_jsonl(tmp_path / "corpus/null.jsonl", [{"id": "n", "text": None}])
    failed = ray_cluster.submit(*flags)
    said = failed.stdout + failed.stderr
    assert failed.returncode == 1
    assert re.search(r"^error: 1 of 481 rows were rejected.*rejects\.jsonl", said, re.M), said
    assert "Traceback" not in said
    job = ray_cluster.last_job()
    assert job["status"] == "FAILED"
    assert job["driver_exit_code"] == 6
    page = (ROOT / "docs/operations.md").read_text("utf-8")
    (program,) = re.findall(r"^\$ python -c \"(.*driver_exit_code.*)\"$", page, re.M)
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    exec(program.replace("night-1", str(job["submission_id"])))
    assert capsys.readouterr().out.strip() == "6"
    outcome = json.loads((tmp_path / "report.json").read_text())["outcome"]
    assert outcome.startswith("IncompleteRun: 1 of 481 rows")
    assert len(rows_of(tmp_path / "db/docs")) == 480


def test_relative_paths_are_refused_in_a_submitted_job(ray_cluster: Cluster) -> None:
    done = ray_cluster.submit("--corpus", "examples/corpus", "--table", "db/docs")
    said = done.stdout + done.stderr
    assert re.search(
        r"^error: --corpus examples/corpus is a relative path.*absolute path", said, re.M
    )
    assert ray_cluster.last_job()["driver_exit_code"] == 2


def test_gpus_that_do_not_come_end_the_job_before_its_command(ray_cluster: Cluster) -> None:
    words = [sys.executable, "jobs/with_gpus.py", "--gpus", "2", "--spot_minutes", "0.01"]
    words += ["--on_demand_minutes", "0.01", "--", "echo", "it ran"]
    address = {"RAY_ADDRESS": f"127.0.0.1:{ray_cluster.gcs}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, cwd=ROOT, env=ray_cluster.environment | address, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.search(r"^error: 2 GPUs were asked for and the cluster has 0", done.stderr, re.M)
    assert "it ran" not in done.stdout


def test_a_cluster_that_is_too_small_says_so_at_once(
    ray_cluster: Cluster, tmp_path: Path, tiny_encoder: Path, write_jsonl: Callable[..., Path]
) -> None:
    write_jsonl(tmp_path / "corpus/a.jsonl", documents(3))
    done = ray_cluster.submit(
        "--corpus", tmp_path / "corpus", "--table", tmp_path / "db/docs",
        "--encoder.path", tiny_encoder, "--pool.gpus_per_encoder", "1",
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert re.search(r"^error: 1 encoders? with 1 GPU each needs? 1 GPUs?.*has 0", said, re.M), said
    assert ray_cluster.last_job()["driver_exit_code"] == 2
