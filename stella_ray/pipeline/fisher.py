"""The Fisher information as a Ray Data job: each actor measures some pools, the driver adds up."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.learn.recipe import ComputeSettings
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline.cluster import Pool, configure_data, keep_ray_data_quiet, map_blocks
from stella_ray.pipeline.encode import wait_asleep
from stella_ray.storage import StorageSettings

if TYPE_CHECKING:
    from torch import Tensor

    from stella_ray.learn.fisher import FisherNotes

PARTS_PER_ACTOR = 4
"""A lost actor costs a part; each part's numbers, as many as the model's, go to the driver."""

IMPORTANCES = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("importance", pa.large_binary()),
    ]
)
"""Of a parameter: what rows of a part said in the mean, float32."""


@dataclass(frozen=True, kw_only=True)
class FisherPlan:
    """What each actor needs to know."""

    encoder: EncoderSettings
    source: ExampleSource
    compute: ComputeSettings
    notes: FisherNotes
    pools: int
    storage: StorageSettings
    threads: int = 1


class MeasurePools:
    """An actor with the encoder: numbers of pools in, importances out, a row for each parameter."""

    def __init__(self, plan: FisherPlan) -> None:
        keep_ray_data_quiet()
        wait_asleep()
        import torch

        from stella_ray.learn.examples import open_examples
        from stella_ray.learn.mixing import ExampleStream
        from stella_ray.learn.trainee import Trainee

        torch.set_num_threads(plan.threads)
        self.plan = plan
        spec = find_encoder(plan.encoder)
        self.trainee = Trainee(spec, plan.compute)
        self.trainee.model.eval()
        self.stream = ExampleStream(
            plan.source,
            open_examples(plan.source, storage=plan.storage),
            plan.notes.seed,
            spec.query_prefix,
            spec.passage_prefix,
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        """Measure the pools first to last - 1 of each row."""
        from stella_ray.learn.fisher import diagonal_fisher

        out: list[dict[str, Any]] = []
        for part in block.to_pylist():
            pools = self._pools(part["first"], part["last"])
            found, told = diagonal_fisher(
                self.trainee.model, self._vectors, pools, self.plan.notes, part["first"]
            )
            out += [
                {
                    "name": name,
                    "rows": told.rows,
                    "shape": list(one.shape),
                    "importance": one.cpu().numpy().tobytes(),
                }
                for name, one in found.items()
            ]
        return pa.Table.from_pylist(out, IMPORTANCES)

    def _pools(self, first: int, last: int) -> Iterator[tuple[list[str], list[str]]]:
        for step in range(first, last):
            batch = self.stream.batch(0, step)
            yield batch.queries, batch.passages[: len(batch.queries)]

    def _vectors(self, texts: list[str]) -> Tensor:
        """In the texts' order, with their graph."""
        import torch

        rows = self.trainee.tokenizer(texts)
        cut, _ = self.trainee.cut(rows)
        keys = np.zeros(len(texts), np.uint64)
        vectors = torch.cat([self.trainee.vectors(rows, batch, keys) for batch in cut])
        return vectors[torch.from_numpy(np.concatenate(cut)).argsort().to(vectors.device)]


def measure(plan: FisherPlan, pool: Pool) -> tuple[dict[str, np.ndarray], FisherNotes]:
    """Measure the Fisher information of an encoder on pairs.

    Args:
        plan: encoder, pairs and pools.
        pool: sizes.

    Returns:
        Importances by the parameters' names, float32; and what they depend on.
    """
    configure_data(pool, ray.data.DataContext.get_current())
    parts = min(plan.pools, pool.encoders * PARTS_PER_ACTOR)
    edges = np.linspace(0, plan.pools, parts + 1).astype(int).tolist()
    bounds = [pa.table({"first": [a], "last": [b]}) for a, b in itertools.pairwise(edges)]
    measured = map_blocks(
        ray.data.from_arrow(bounds),
        MeasurePools,
        fn_constructor_args=(dataclasses.replace(plan, threads=pool.threads),),
        compute=ray.data.ActorPoolStrategy(size=min(pool.encoders, parts)),
        num_cpus=pool.cpus_per_encoder,
        num_gpus=pool.gpus_per_encoder or None,
    )
    total: dict[str, np.ndarray] = {}
    rows: dict[str, int] = {}
    for block in measured.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in block.to_pylist():
            mean = np.frombuffer(row["importance"], np.float32).reshape(row["shape"])
            name = row["name"]
            total[name] = total.get(name, 0.0) + mean.astype(np.float64) * row["rows"]
            rows[name] = rows.get(name, 0) + row["rows"]
    fisher = {name: (sums / rows[name]).astype(np.float32) for name, sums in total.items()}
    return fisher, dataclasses.replace(plan.notes, rows=max(rows.values()))
