"""Fine-tune an encoder on examples of several types, without it forgetting the rest.

python jobs/train.py --config jobs/presets/train-smoke.yaml

Stopped or killed, `--resume true` goes on from the last checkpoint as if nothing had been.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from stella_ray import settings
from stella_ray.encode.models import EncoderSettings, EncoderSpec, find_encoder
from stella_ray.errors import SettingsError
from stella_ray.learn.examples import open_examples
from stella_ray.learn.folders import check_vacant, new_folder, read_json
from stella_ray.learn.recipe import (
    AnchorSettings,
    ComputeSettings,
    OptimizerSettings,
    WorkerSettings,
)
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline.cluster import PoolSettings, cluster
from stella_ray.pipeline.train import MODEL, Trained, TrainPlan, train
from stella_ray.pipeline.train_page import write_page
from stella_ray.storage import StorageSettings, absolute, filesystem

log = logging.getLogger("stella_ray.train")


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Fine-tune an encoder on examples of several types."""

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    """The base model. For texts beyond its positions, extend it first (jobs/extend.py)."""
    sources: list[ExampleSource]
    """The types of examples; each has its own iterator, and each step takes one type."""
    out: str
    """The new model folder; must not be there yet, or be empty."""
    run: str | None = None
    """Folder of checkpoints, on a disk that all nodes share or on S3. Default: OUT.run."""
    resume: bool = False
    """Go on from the last checkpoint of `run`."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    anchor: AnchorSettings = field(default_factory=AnchorSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    guide: str | None = None
    """An encoder that tells false negatives, for sources with a guide_margin: it encodes each such
    step's texts as they are, this encoder's prefixes included."""
    dropout: float | None = None
    """Share dropped behind each layer. Default: as the model's config says."""
    seed: int = 0
    """Of orders, negatives and dropout: equal seeds give equal runs."""
    long_tokens: int = 512
    """Texts with more tokens are counted, since they alone train the positions behind it."""
    checkpoint_steps: int = 50
    """Steps between two checkpoints: roughly what a lost worker costs. Held-out sets are measured
    at each."""
    keep_checkpoints: int = 2
    """Older ones are removed."""
    evaluation: list[ExampleSource] = field(default_factory=list)
    """Held-out sets: name, kind, files and columns count. Pairs: Recall@1, 5, 10; else Spearman."""
    tensorboard: str | None = None
    """Folder for TensorBoard, on the first worker's node. Default: none."""
    train: WorkerSettings = field(default_factory=WorkerSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        for name in ("checkpoint_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} {getattr(self, name)}; expected 1 or more")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise SettingsError(f"dropout {self.dropout}; expected 0 to below 1")
        if self.encoder.dtype not in ("auto", "float32"):
            raise SettingsError(
                f"encoder.dtype {self.encoder.dtype}: weights that learn are float32; say"
                " --compute.dtype for the numbers of the passes"
            )


def run(job: TrainJob) -> Trained:
    """Train, and write the model folder with its report."""
    run_folder = job.run or f"{job.out.rstrip('/')}.run"
    settings.refuse_relative(out=job.out, run=run_folder)
    job = with_absolute_paths(job)
    check_vacant(job.out)
    check_run(run_folder, job)
    spec = find_encoder(job.encoder)
    for source in job.sources:  # bad rows are told before any worker starts
        open_examples(source, storage=job.storage)
    plan = TrainPlan(
        encoder=job.encoder,
        sources=job.sources,
        optimizer=job.optimizer,
        compute=job.compute,
        anchor=anchor_of(spec, job.anchor),
        dropout=job.dropout,
        seed=job.seed,
        long_tokens=job.long_tokens,
        checkpoint_steps=job.checkpoint_steps,
        evaluation=job.evaluation,
        storage=job.storage,
        tensorboard=job.tensorboard,
        guide=EncoderSettings(path=job.guide) if job.guide else None,
    )
    with cluster():
        trained = train(plan, job.train, job.pool, run_folder, job.keep_checkpoints, print)
    publish(job, trained)
    return trained


def with_absolute_paths(job: TrainJob) -> TrainJob:
    """The job with paths that hold in a worker too, which has a folder of its own."""

    def whole(path: str) -> str:
        return str(Path(path).absolute()) if Path(path).exists() else path

    def sources(given: list[ExampleSource]) -> list[ExampleSource]:
        return [
            dataclasses.replace(one, files=[absolute(item) for item in one.files]) for one in given
        ]

    fisher = job.anchor.fisher
    return dataclasses.replace(
        job,
        encoder=dataclasses.replace(job.encoder, path=whole(job.encoder.path)),
        guide=whole(job.guide) if job.guide else None,
        sources=sources(job.sources),
        evaluation=sources(job.evaluation),
        anchor=dataclasses.replace(job.anchor, fisher=whole(fisher) if fisher else None),
        tensorboard=str(Path(job.tensorboard).absolute()) if job.tensorboard else None,
    )


def check_run(run_folder: str, job: TrainJob) -> None:
    """A run's checkpoints are gone on from when asked, and never by accident.

    Raises:
        SettingsError: there are some, or there are none.
    """
    store, inner = filesystem(run_folder, job.storage)
    there = bool(store.exists(inner) and store.ls(inner))
    if there and not job.resume:
        raise SettingsError(
            f"--run {run_folder} holds a run; say --resume true to go on with it, name another"
            " folder, or remove it"
        )
    if job.resume and not there:
        raise SettingsError(f"--resume true: no run in {run_folder}; check --run, or leave it out")


def anchor_of(spec: EncoderSpec, anchor: AnchorSettings) -> AnchorSettings:
    """The anchor with the positions free that an extension made, unless it says from where.

    Raises:
        ModelError: its Fisher information isn't of this base model.
    """
    if anchor.fisher is not None:
        from stella_ray.learn.fisher import check_fisher

        check_fisher(Path(anchor.fisher), spec.fingerprint["weights"])
    extension = read_json(Path(spec.folder) / "extension.json")
    if anchor.free_positions_from is not None or not extension:
        return anchor
    rows = int(read_json(Path(spec.folder) / "config.json")["max_position_embeddings"])
    old, new = extension["positions"]
    return dataclasses.replace(anchor, free_positions_from=rows - new + old)


def publish(job: TrainJob, trained: Trained) -> None:
    """Put the last checkpoint's model in its place, with the report page and the numbers."""
    with trained.checkpoint.as_directory() as folder, new_folder(job.out) as made:
        shutil.copytree(Path(folder) / MODEL, made, dirs_exist_ok=True)
        told = {
            "settings": settings.shown(job),
            "steps": [dataclasses.asdict(one) for one in trained.reports],
            "evaluations": trained.evaluations,
        }
        text = json.dumps(told, ensure_ascii=False, indent=1)
        (made / "training.json").write_text(text + "\n", encoding="utf-8")
        write_page(made / "training.html", job.out, trained)
    for steps, metrics in sorted(trained.evaluations.items()):
        words = ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
        print(f"after step {steps:,}: {words}")
    print(
        f"{job.out} is a model folder, and --encoder.path can name it; its training.html shows how"
        " it learnt"
    )


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    about = (__doc__ or "").split("\n\n")[0]
    run(settings.read_settings(TrainJob, about=about))


if __name__ == "__main__":
    settings.run_job(main)
