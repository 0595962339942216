"""The pipeline that one writes first: Ray Data, sentence-transformers on batches, LanceDB's add.

What benchmarks/cpu.py holds jobs/embed.py against.  It is given all cores, which Ray's own setting
for an actor of one CPU would not.

    python -m benchmarks.usual MODEL_FOLDER PREFIX CORPUS.parquet DATABASE
"""

from __future__ import annotations

import os
import sys
from typing import Any

import lancedb
import pyarrow as pa
import ray
import ray.data

BATCH_ROWS = 64


class Embed:
    """An actor that holds the model."""

    def __init__(self, folder: str, prefix: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(os.cpu_count() or 1)
        self.model, self.prefix = SentenceTransformer(folder, device="cpu"), prefix

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rows with their vectors."""
        texts = [self.prefix + text for text in batch["text"]]
        return {**batch, "vector": self.model.encode(texts, show_progress_bar=False)}


def main() -> None:
    """Read, embed, add."""
    folder, prefix, corpus, database = sys.argv[1:]
    ray.init(log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_parquet(corpus).map_batches(
        Embed,
        fn_constructor_args=(folder, prefix),
        compute=ray.data.ActorPoolStrategy(size=1),
        batch_size=BATCH_ROWS,
    )
    table = None
    for block in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
        flat = pa.array(block["vector"].combine_chunks().to_numpy_ndarray().ravel(), pa.float32())
        vectors = pa.FixedSizeListArray.from_arrays(flat, len(flat) // len(block))
        block = block.set_column(block.schema.get_field_index("vector"), "vector", vectors)
        if table is None:
            table = lancedb.connect(database).create_table("docs", block)
        else:
            table.add(block)


if __name__ == "__main__":
    main()
