"""Measure what a base model needs its weights for, so that training can hold on to them (EWC).

python jobs/fisher.py --encoder.path MODEL --pairs.files pairs.jsonl --out fisher.safetensors
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stella_ray import settings
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.errors import SettingsError
from stella_ray.learn.examples import open_examples
from stella_ray.learn.recipe import ComputeSettings
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline.cluster import PoolSettings, cluster, size_pool
from stella_ray.pipeline.fisher import FisherPlan, measure
from stella_ray.storage import StorageSettings


@dataclass(frozen=True, kw_only=True)
class GeneralPairs:
    """Pairs of what the base model can do already; never of what it will learn."""

    files: list[str]
    """Parquet, jsonl (ndjson) or csv, the last two also .gz or .zst; folders, globs; disk or S3."""
    query_column: str = "query"
    """The query's."""
    passage_column: str = "passage"
    """The passage's."""


@dataclass(frozen=True, kw_only=True)
class FisherJob:
    """Measure the Fisher information of a base model on general pairs."""

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    """The base model, extended already if training will be on an extended one."""
    pairs: GeneralPairs
    out: str
    """The safetensors file that --anchor.fisher names; must not be there yet."""
    rows: int = 2_048
    """Pairs that are averaged over; 200 to 2,000 are usual for a diagonal."""
    pool_size: int = 16
    """Pairs that are each other's candidates. The numbers depend on it, and it is kept with them;
    the graph of so many pairs is in memory."""
    scale: float = 30.0
    """Of the softmax: that of the training."""
    kind: Literal["true", "empirical"] = "true"
    """true: answers are drawn from the softmax; empirical: the pair's own passage, of which little
    is left where the model is sure."""
    seed: int = 0
    """Of the pairs' order and of what is drawn."""
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        if self.pool_size < 2 or self.rows < self.pool_size:
            raise SettingsError(
                f"rows {self.rows} and pool_size {self.pool_size}; expected two pairs or more in a"
                " pool, and one pool or more"
            )


def run(job: FisherJob) -> Path:
    """Measure, and write the file."""
    settings.refuse_relative(out=job.out)
    out = Path(job.out).expanduser().absolute()
    if out.exists():
        raise SettingsError(f"--out {out} is there; name another file or remove it")
    from stella_ray.learn.fisher import FisherNotes, save_fisher

    spec = find_encoder(job.encoder)
    source = ExampleSource(
        name="fisher",
        kind="pairs",
        files=job.pairs.files,
        query_column=job.pairs.query_column,
        passage_column=job.pairs.passage_column,
        batch_size=job.pool_size,
        negative_share=0.0,
    )
    store = open_examples(source, storage=job.storage)
    pools = job.rows // job.pool_size
    if store.rows < pools * job.pool_size:
        raise SettingsError(
            f"{store.rows:,} pairs, where --rows {job.rows:,} need {pools * job.pool_size:,}; give"
            " more pairs or lower --rows"
        )
    notes = FisherNotes(
        weights=spec.fingerprint["weights"],
        data=store.digest,
        pool=job.pool_size,
        scale=job.scale,
        kind=job.kind,
        seed=job.seed,
    )
    plan = FisherPlan(
        encoder=job.encoder,
        source=source,
        compute=job.compute,
        notes=notes,
        pools=pools,
        storage=job.storage,
    )
    with cluster():
        fisher, told = measure(plan, size_pool(job.pool))
    import torch

    out.parent.mkdir(parents=True, exist_ok=True)
    save_fisher(out, {name: torch.from_numpy(one) for name, one in fisher.items()}, told)
    total = sum(float(one.sum()) for one in fisher.values())
    most = sorted(fisher, key=lambda name: -float(fisher[name].sum()))[:5]
    for name in most:
        print(f"{float(fisher[name].sum()) / (total or 1):6.1%} of it in {name}")
    print(f"{out}: over {told.rows:,} pairs in pools of {told.pool}; --anchor.fisher can name it")
    return out


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    about = (__doc__ or "").split("\n\n")[0]
    run(settings.read_settings(FisherJob, about=about))


if __name__ == "__main__":
    settings.run_job(main)
