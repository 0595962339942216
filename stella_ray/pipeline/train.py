"""Training on Ray Train: workers that step together, checkpoints, restarts, held-out evaluation."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.errors import IncompleteRun, StellaError, stella_error_in
from stella_ray.learn.recipe import (
    AnchorSettings,
    ComputeSettings,
    OptimizerSettings,
    WorkerSettings,
)
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline.cluster import Pool, PoolSettings, size_pool
from stella_ray.pipeline.encode import load, wait_asleep
from stella_ray.pipeline.heldout import evaluate_sets
from stella_ray.pipeline.train_watch import Board, line_of, spoken
from stella_ray.pipeline.train_workers import pool_beside, scaling_of
from stella_ray.storage import StorageSettings, filesystem, is_s3

if TYPE_CHECKING:
    from stella_ray.encode.encoder import Encoder
    from stella_ray.learn.learner import Learner, StepReport

log = logging.getLogger(__name__)

MODEL = "model"
"""A checkpoint's model folder."""


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Everything that a worker needs to know."""

    encoder: EncoderSettings
    sources: list[ExampleSource]
    optimizer: OptimizerSettings
    compute: ComputeSettings
    anchor: AnchorSettings
    dropout: float | None
    seed: int
    long_tokens: int
    checkpoint_steps: int
    evaluation: list[ExampleSource]
    storage: StorageSettings
    tensorboard: str | None
    guide: EncoderSettings | None = None
    threads: int = 1
    pool: Pool | None = None


@dataclass
class Trained:
    """What a run left.

    Attributes:
        model: the last checkpoint's model folder, a path of Ray Train's storage.
        reports: of all steps.
        evaluations: by the number of steps done: held-out metrics by "set/metric".
    """

    checkpoint: ray.train.Checkpoint
    reports: list[StepReport]
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)


def train(
    plan: TrainPlan,
    workers: WorkerSettings,
    pool: PoolSettings,
    run_folder: str,
    keep_checkpoints: int,
    say: Callable[[str], None],
) -> Trained:
    """Run or go on with a training run.

    Args:
        plan: what the workers do.
        workers: how many, and what of the cluster each gets.
        pool: of the embedding actors, for held-out evaluation.
        run_folder: where checkpoints lie; the run goes on from the last one that is there.
        keep_checkpoints: older ones are removed.
        say: where lines for a person go.

    Raises:
        StellaError: as a worker raised it.
        IncompleteRun: workers failed too often.
    """
    # Half a second and more, which `--help` needn't wait for; workers have it.
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.validation_config import ValidationConfig

    scaling, threads = scaling_of(workers, evaluates=bool(plan.evaluation))
    if plan.evaluation:
        plan = dataclasses.replace(plan, pool=size_pool(pool_beside(pool, scaling)))
    plan = dataclasses.replace(plan, threads=threads)
    where, file_system = _place(run_folder, plan.storage)
    with spoken(say) as speaker:
        trainer = TorchTrainer(
            _loop,
            train_loop_config={"plan": plan, "speaker": speaker},
            scaling_config=scaling,
            run_config=RunConfig(
                name=where.name,
                storage_path=str(where.parent),
                storage_filesystem=file_system,
                failure_config=FailureConfig(max_failures=workers.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=keep_checkpoints),
            ),
            validation_config=ValidationConfig(
                functools.partial(_evaluated, plan=plan), ray_remote_kwargs={"num_cpus": 0}
            )
            if plan.evaluation
            else None,
        )
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise _as_person_reads_it(error, run_folder) from None
    if isinstance(result.return_value, StellaError):
        raise result.return_value
    _remove_orphans(run_folder, plan.storage, result)
    return _trained(result)


def _place(run_folder: str, storage: StorageSettings) -> tuple[Path, Any]:
    if not is_s3(run_folder):
        return Path(run_folder).expanduser().absolute(), None
    import pyarrow.fs

    opened, inner = filesystem(run_folder, storage)
    return Path(inner), pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(opened))


def _loop(config: dict[str, Any]) -> StellaError | None:
    """A worker: all its steps, from the last checkpoint on.

    Returns:
        What is wrong with data or settings, where no other worker waits: raised, Ray Train would
        take it for a lost worker, and try again.
    """
    try:
        return _opened_and_stepped(config["plan"], config["speaker"])
    except StellaError as error:
        if ray.train.get_context().get_world_size() > 1:
            raise  # the others wait for this one's vectors; lost, it lets them go
        return error


def _opened_and_stepped(plan: TrainPlan, speaker: Any) -> StellaError | None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wait_asleep()
    import torch

    from stella_ray.learn.parallel import Workers

    torch.set_num_threads(plan.threads)
    learner, fault = None, None
    try:
        learner = open_learner(plan)
    except StellaError as error:
        fault = error
    # All meet here once, so that none steps where one couldn't begin, and none is tried again.
    fault = Workers.of_process_group().first_fault(fault)
    if fault is None and learner is not None:
        _steps(plan, learner, speaker)
    return fault


def _steps(plan: TrainPlan, learner: Learner, speaker: Any) -> None:
    from stella_ray.learn.checkpoints import read_checkpoint, write_checkpoint

    first = learner.workers.rank == 0
    reports: list[StepReport] = []
    if last := ray.train.get_checkpoint():
        with last.as_directory() as folder:
            reports = read_checkpoint(learner, Path(folder))
        if first:
            speaker.say.remote(f"going on after step {len(reports):,}")
    board = Board(plan.tensorboard if first else None, len(reports))
    for number in range(len(reports), plan.optimizer.steps):
        reports.append(learner.step(number))
        board.write(reports[-1])
        if first:
            speaker.say.remote(line_of(reports[-1], plan.optimizer.steps))
        done = number + 1
        if done % plan.checkpoint_steps and done < plan.optimizer.steps:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = None
            if first:
                write_checkpoint(learner, Path(scratch), reports)
                checkpoint = ray.train.Checkpoint.from_directory(scratch)
            ray.train.report(
                {"steps": done}, checkpoint=checkpoint, validation=bool(plan.evaluation)
            )
    board.close()


def open_learner(plan: TrainPlan) -> Learner:
    """A worker's learner, before its first step."""
    from stella_ray import Encoder
    from stella_ray.learn.ewc import Anchor
    from stella_ray.learn.examples import open_examples
    from stella_ray.learn.learner import Learner
    from stella_ray.learn.mixing import ExampleStream, Mixture
    from stella_ray.learn.parallel import Workers
    from stella_ray.learn.trainee import Trainee

    spec = find_encoder(plan.encoder)
    trainee = Trainee(spec, plan.compute, plan.dropout)
    guide = Encoder(plan.guide) if plan.guide else None
    streams = [
        ExampleStream(
            source,
            open_examples(source, storage=plan.storage),
            plan.seed,
            spec.query_prefix,
            spec.passage_prefix,
        )
        for source in plan.sources
    ]
    return Learner(
        trainee,
        Mixture(streams, plan.seed),
        plan.optimizer,
        Anchor(trainee.parameters.items(), plan.anchor),
        Workers.of_process_group(),
        plan.seed,
        plan.long_tokens,
        guide,
    )


def _evaluated(checkpoint: ray.train.Checkpoint, *, plan: TrainPlan) -> dict[str, float]:
    """Held-out metrics of a checkpoint, in a task of Ray Train's beside the training."""
    assert plan.pool is not None, "no pool for evaluation; this is a bug"
    with checkpoint.as_directory() as folder:
        encoder = dataclasses.replace(plan.encoder, path=f"{folder}/{MODEL}", revision=None)
        opened = functools.partial(_open_checkpoint, checkpoint)
        return evaluate_sets(plan.evaluation, encoder, plan.pool, plan.storage, opened)


def _open_checkpoint(
    checkpoint: ray.train.Checkpoint, settings: EncoderSettings, digest: str
) -> Encoder:
    """Load a checkpoint's encoder on whatever node an actor finds itself."""
    with checkpoint.as_directory() as folder:
        return load(dataclasses.replace(settings, path=f"{folder}/{MODEL}"), digest)


def _trained(result: ray.train.Result) -> Trained:
    from stella_ray.learn.checkpoints import read_reports

    assert result.checkpoint is not None, "a run without a checkpoint; this is a bug"
    with result.checkpoint.as_directory() as folder:
        reports = read_reports(Path(folder))
    evaluations = {}
    for _, metrics in result.best_checkpoints or []:
        told = {name: value for name, value in metrics.items() if "/" in name}
        if told:
            evaluations[int(metrics["steps"])] = told
    return Trained(result.checkpoint, reports, evaluations)


def _remove_orphans(run_folder: str, storage: StorageSettings, result: ray.train.Result) -> None:
    """Remove checkpoints that a killed worker wrote and the run never learnt of."""
    store, inner = filesystem(run_folder, storage)
    known = {Path(one.path).name for one, _ in result.best_checkpoints or []}
    for path in store.ls(inner, detail=False):
        name = Path(path).name
        if name.startswith("checkpoint_2") and name not in known:
            store.rm(path, recursive=True)


def _as_person_reads_it(error: Exception, run_folder: str) -> Exception:
    below = list(getattr(error, "worker_failures", {}).values()) or [error]
    for one in below:
        known: StellaError | None = stella_error_in(one)
        if known is not None:
            return known
    reason = " ".join(str(below[0]).split())[-300:]
    return IncompleteRun(
        f"training broke off ({type(below[0]).__name__}: {reason}); its checkpoints are in"
        f" {run_folder}: --resume true goes on from the last"
    )
