"""The round trip: does the encoder find the paragraph by the question that was made of it?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from stella_ray.encode.models import EncoderSettings, EncoderSpec
from stella_ray.learn.synthetic import ranks
from stella_ray.pipeline.cluster import Pool, keep_ray_data_quiet
from stella_ray.pipeline.encode import load

PREFIXES = ("query", "passage")

ROWS_PER_BLOCK = 256
"""Texts that an encoder gets at a time."""


class EmbedTexts:
    """An actor that holds the encoder: numbered texts in, their vectors out."""

    def __init__(self, settings: EncoderSettings, digest: str, threads: int) -> None:
        keep_ray_data_quiet()
        import torch

        torch.set_num_threads(threads)
        self.encoder = load(settings, digest)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Embed a block of number, prefix and text; gives number and vector."""
        numbers = block.column("number").to_numpy()
        prefixes = np.asarray(block.column("prefix").to_pylist(), object)
        texts = np.asarray(block.column("text").to_pylist(), object)
        vectors = np.empty((len(block), self.encoder.dim), np.float32)
        for prefix in PREFIXES:
            rows = prefixes == prefix
            vectors[rows] = self.encoder.embed(texts[rows].tolist(), prefix)
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.encoder.dim)
        return pa.table({"number": numbers, "vector": flat})


class RoundTrip:
    """Finds paragraphs by questions, in a pool that is bounded by the settings.

    The vectors of the pool and of what was asked are in memory: 4 bytes a number.

    Args:
        settings: the encoder.
        spec: the same, found.
        pool: the cluster's.
        passages: of the pool, each once.
    """

    def __init__(
        self, settings: EncoderSettings, spec: EncoderSpec, pool: Pool, passages: Sequence[str]
    ) -> None:
        self.settings = settings
        self.spec = spec
        self.pool = pool
        self.passages = list(passages)
        self._place = {text: n for n, text in enumerate(self.passages)}
        self._vectors: dict[tuple[str, str], np.ndarray] = {}

    def ranks(
        self, queries: Sequence[str], passages: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """At which place each query finds its passage, from 1, and their cosine: int64, float32."""
        own = [(("query", q), ("passage", p)) for q, p in zip(queries, passages, strict=True)]
        if not own:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        everything = [("passage", text) for text in self.passages]
        everything += [key for pair in own for key in pair]
        self._embed([key for key in dict.fromkeys(everything) if key not in self._vectors])
        vectors = self._vectors
        return ranks(
            np.stack([vectors[query] for query, _ in own]),
            np.stack([vectors[passage] for _, passage in own]),
            np.array([self._place.get(text, -1) for text in passages], np.int64),
            np.stack([vectors["passage", text] for text in self.passages]),
        )

    def _embed(self, keys: list[tuple[str, str]]) -> None:
        if not keys:
            return
        blocks = []
        for start in range(0, len(keys), ROWS_PER_BLOCK):
            prefixes, texts = zip(*keys[start : start + ROWS_PER_BLOCK], strict=True)
            numbers = range(start, start + len(texts))
            blocks.append(
                pa.table({"number": list(numbers), "prefix": list(prefixes), "text": list(texts)})
            )
        with warnings.catch_warnings():
            # As for embedding: the bound on retries has no other way in.
            warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
            found = ray.data.from_arrow(blocks).map_batches(
                EmbedTexts,
                fn_constructor_args=(
                    self.settings,
                    self.spec.fingerprint["digest"],
                    self.pool.threads,
                ),
                compute=ActorPoolStrategy(size=min(self.pool.encoders, len(blocks))),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=self.pool.cpus_per_encoder,
                num_gpus=self.pool.gpus_per_encoder or None,
                max_task_retries=self.pool.window_retries,
            )
        for block in found.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            vectors = np.stack(block.column("vector").to_numpy())
            for number, vector in zip(block.column("number").to_pylist(), vectors, strict=True):
                self._vectors[keys[number]] = vector
