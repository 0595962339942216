"""Rows in motion on Ray Data: shards, prepared rows, vectors, fragments, receipts.

Each stage is a function from block to block; Ray is only its caller. The driver sees receipts,
never texts or vectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from stella_ray.encode.models import EncoderSettings
from stella_ray.pipeline.cluster import Pool, map_blocks
from stella_ray.pipeline.corpus import Corpus
from stella_ray.pipeline.encode import EncodeBlocks
from stella_ray.pipeline.judge import Preparation, resolved, rows_of_documents
from stella_ray.pipeline.prepare import prepare_block
from stella_ray.pipeline.write import write

if TYPE_CHECKING:
    from stella_ray.encode.encoder import Encoder


def receipts(
    corpus: Corpus,
    how: Preparation,
    settings: EncoderSettings,
    pool: Pool,
    target: dict[str, Any],
    opened: Callable[[EncoderSettings, str], Encoder] | None = None,
) -> Iterator[pa.Table]:
    """Run a corpus through preparation, encoders and writers; yields a receipt a written block.

    Args:
        corpus: what to read.
        how: columns and fingerprint.
        settings: the encoder.
        pool: sizes.
        target: the keyword arguments of `write` beside the block.
        opened: how an actor comes by its encoder; by default it loads what the settings name.
    """
    known = resolved(target["known"])
    # On a table that has rows already, most nights bring little; but an idle GPU costs more than
    # a model that nobody needed.
    at_once = not len(known.keys) or pool.gpus_per_encoder > 0
    tags = {"run": target["run_id"], "table": target["uri"]}
    with warnings.catch_warnings():
        # A bound on retries has no other way in yet; without it a window that kills its actor is
        # tried for ever.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        vectors = map_blocks(
            prepared(corpus, how, pool, target["known"]),
            EncodeBlocks,
            fn_constructor_args=(settings, how.digest, pool.threads, at_once, opened, tags),
            # Ray Data starts more where late nodes have room; a lost node's start anew elsewhere.
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.encoders,
                max_size=pool.most_encoders,
                max_concurrent_calls_per_actor=pool.windows_at_once,
                enable_true_multi_threading=True,
            ),
            num_cpus=pool.cpus_per_encoder,
            num_gpus=pool.gpus_per_encoder or None,
            max_task_retries=pool.window_retries,
        )
    written = vectors.map_batches(
        write, fn_kwargs=target, batch_size=None, batch_format="pyarrow", num_cpus=pool.task_cpus
    )
    yield from written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def prepared(corpus: Corpus, how: Preparation, pool: Pool, known: Any) -> ray.data.Dataset:
    """A corpus's rows as blocks of the schema `rows.prepared`.

    Args:
        corpus: what to read.
        how: columns and fingerprint.
        pool: sizes.
        known: the table's keys, or a reference to them.
    """
    return corpus.rows(pool).map_batches(
        prepare_block,
        fn_kwargs={"how": how, "known": known, "window_rows": pool.window_rows},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pool.task_cpus,
    )


def doubled_rows(
    corpus: Corpus, how: Preparation, pool: Pool, documents: np.ndarray
) -> list[dict[str, Any]]:
    """Read the corpus once more for the rows of ids that stand for several texts.

    Args:
        corpus: what was read.
        how: columns and fingerprint.
        pool: sizes.
        documents: document parts of the keys in question, `S7`, sorted.

    Returns:
        shard, row, doc_id and row_key of every such row, in the order of the corpus.
    """
    found = corpus.rows(pool).map_batches(
        rows_of_documents,
        fn_kwargs={"how": how, "documents": documents},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=pool.task_cpus,
    )
    blocks = found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    rows = [row for block in blocks for row in block.to_pylist()]
    return sorted(rows, key=lambda row: (row["shard"], row["row"], row["row_key"]))
