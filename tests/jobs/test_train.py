"""The training job on Ray Train: from examples to a model, through killed workers and drivers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file

from jobs.train import TrainJob, run
from stella_ray import settings
from stella_ray.encode.encoder import Encoder
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import CorpusError, SettingsError
from stella_ray.learn.recipe import OptimizerSettings, WorkerSettings
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline.train import TrainPlan, open_learner
from tests.conftest import S3Place
from tests.learn.training_data import write_sources

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 20


def make_job(tmp_path: Path, encoder: Path, out: str = "out", **more: Any) -> TrainJob:
    told: dict[str, Any] = {
        "encoder": EncoderSettings(path=str(encoder)),
        "sources": write_sources(tmp_path / "data"),
        "out": str(tmp_path / out),
        "optimizer": OptimizerSettings(steps=STEPS, learning_rate=1e-3),
        "checkpoint_steps": 2,
        "train": WorkerSettings(workers=1, threads=1),
    }
    return TrainJob(**(told | more))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Any:
    """The weights that a run in one process, without Ray, ends with."""
    job = make_job(tmp_path_factory.mktemp("undisturbed"), tiny_encoder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plan = TrainPlan(
        **{
            name: getattr(job, name)
            for name in ("encoder", "sources", "optimizer", "compute", "anchor", "dropout")
        },
        **{name: getattr(job, name) for name in ("seed", "long_tokens", "checkpoint_steps")},
        evaluation=[],
        storage=job.storage,
        tensorboard=None,
    )
    learner = open_learner(plan)
    for step in range(STEPS):
        learner.step(step)
    torch.set_num_threads(threads)
    return {name: p.detach() for name, p in learner.parameters.items()}


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def kill_when(
    folder: str, process: Callable[[], list[psutil.Process]], store: Any = None
) -> threading.Thread:
    """Kill processes once a run knows of a checkpoint."""
    store = store or LocalFileSystem()
    book = f"{folder}/checkpoint_manager_snapshot.json"

    def knows() -> bool:
        try:
            return b"checkpoint_dir_name" in store.cat_file(book)
        except FileNotFoundError:
            return False

    def go() -> None:
        while not knows():
            time.sleep(0.02)
        for one in process():
            one.send_signal(signal.SIGKILL)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    return thread


def processes_of(driver: int) -> list[psutil.Process]:
    """The driver and its Ray, as when a node loses its power."""
    first = psutil.Process(driver)
    return [first, *first.children(recursive=True)]


def train_workers() -> list[psutil.Process]:
    """Ray Train's workers below this process's Ray."""
    return [
        one
        for one in psutil.process_iter(["cmdline"])
        if "RayTrainWorker" in " ".join(one.info["cmdline"] or [])
    ]


def test_a_run_ends_with_a_model_its_curves_and_held_out_metrics(
    local_ray: None, tmp_path: Path, tiny_encoder: Path, undisturbed: Any, capsys: Any
) -> None:
    sources = write_sources(tmp_path / "data")
    job = make_job(
        tmp_path,
        tiny_encoder,
        checkpoint_steps=STEPS,
        evaluation=sources,
        tensorboard=str(tmp_path / "board"),
        keep_checkpoints=1,
    )
    trained = run(job)
    assert [one.step for one in trained.reports] == list(range(STEPS))
    found = weights(job.out)
    assert all(torch.equal(found[name], undisturbed[name]) for name in undisturbed)
    assert len(Encoder(job.out).embed(["一二三"])) == 1
    told = json.loads((tmp_path / "out/training.json").read_text("utf-8"))
    assert len(told["steps"]) == STEPS
    metrics = told["evaluations"][str(STEPS)]
    assert {"pairs/recall@1", "pairs/recall@5", "scored/spearman", "nli/spearman"} <= set(metrics)
    assert 0 <= metrics["pairs/recall@1"] <= metrics["pairs/recall@10"] <= 1
    page = (tmp_path / "out/training.html").read_text("utf-8")
    assert "<svg" in page
    assert "scored/spearman" in page
    assert "http" not in page
    assert list((tmp_path / "board").glob("events.*"))
    said = capsys.readouterr().out
    assert f"step {STEPS}/{STEPS} " in said
    assert f"after step {STEPS}: nli/spearman" in said
    with pytest.raises(SettingsError, match="isn't empty"):
        run(job)
    with pytest.raises(SettingsError, match="holds a run; say --resume true"):
        run(make_job(tmp_path, tiny_encoder, "out2", run=f"{job.out}.run"))


def test_a_killed_worker_costs_no_step_with_its_checkpoints_on_s3(
    s3: S3Place,
    s3_fs: Any,
    local_ray: None,
    tmp_path: Path,
    tiny_encoder: Path,
    undisturbed: Any,
    capsys: Any,
) -> None:
    folder = f"{s3.bucket}/runs/one"
    job = make_job(tmp_path, tiny_encoder, run=f"s3://{folder}", storage=s3.storage)
    killer = kill_when(folder, train_workers, s3_fs)
    trained = run(job)
    killer.join(1)
    assert not killer.is_alive()
    assert "going on after step" in capsys.readouterr().out
    assert [one.step for one in trained.reports] == list(range(STEPS))
    found = weights(job.out)
    assert all(torch.equal(found[name], undisturbed[name]) for name in undisturbed)
    assert not (tmp_path / "out.run").exists()
    s3_fs.invalidate_cache()
    assert len(s3_fs.glob(f"{folder}/checkpoint_2*")) == job.keep_checkpoints


def test_two_workers_end_where_one_does(
    local_ray: None, tmp_path: Path, tiny_encoder: Path
) -> None:
    """At the recipe's learning rate: Adam makes steps of full size out of rounding noise, where a
    gradient is zero but for it (key biases)."""
    optimizer = OptimizerSettings(steps=6, learning_rate=1e-6)
    ends = []
    for count in (1, 2):
        job = make_job(
            tmp_path,
            tiny_encoder,
            f"out-{count}",
            optimizer=optimizer,
            train=WorkerSettings(workers=count, threads=1),
        )
        trained = run(job)
        ends.append((weights(job.out), [one.loss for one in trained.reports]))
    (one, losses), (two, other_losses) = ends
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    assert losses == pytest.approx(other_losses, rel=1e-5)


def test_a_killed_driver_is_resumed_to_the_same_weights(
    tmp_path: Path, tiny_encoder: Path, undisturbed: Any
) -> None:
    job = make_job(tmp_path, tiny_encoder)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings.shown(job)), encoding="utf-8")
    command = [sys.executable, "jobs/train.py", "--config", str(tmp_path / "job.yaml")]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    first = subprocess.Popen(command, env=environment, start_new_session=True)
    folder = tmp_path / "out.run"
    kill_when(str(folder), lambda: processes_of(first.pid))
    assert first.wait(180) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    second = subprocess.run(
        [*command, "--resume", "true"], env=environment, capture_output=True, text=True, check=False
    )
    assert second.returncode == 0, second.stderr
    assert "going on after step" in second.stdout
    found = weights(job.out)
    assert all(torch.equal(found[name], undisturbed[name]) for name in undisturbed)


def test_bad_input_is_one_line_before_any_worker_starts(tmp_path: Path, tiny_encoder: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"query": "一", "passage": ""}\n', encoding="utf-8")
    bad = ExampleSource(name="bad", kind="pairs", files=[str(tmp_path / "bad.jsonl")])
    with pytest.raises(CorpusError, match=r"bad.jsonl: row 0 \(from 0\): column passage is empty"):
        run(make_job(tmp_path, tiny_encoder, sources=[bad]))
    with pytest.raises(SettingsError, match="--resume true: no run in"):
        run(make_job(tmp_path, tiny_encoder, resume=True))
