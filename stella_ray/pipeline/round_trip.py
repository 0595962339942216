"""The round trip: does the encoder find the paragraph by the question that was made of it?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stella_ray.encode.models import EncoderSettings, EncoderSpec
from stella_ray.learn.synthetic import ranks
from stella_ray.pipeline.cluster import Pool
from stella_ray.pipeline.texts import Embedders


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
        texts = [self.spec.prefix_text(prefix) + text for prefix, text in keys]
        digest = self.spec.fingerprint["digest"]
        with Embedders(self.settings, digest, self.pool) as embedders:
            vectors = embedders.embed(texts)
        self._vectors |= dict(zip(keys, vectors, strict=True))
