"""Lists of texts to vectors by the embedding actors: what evaluation and round trips ask for.

The corpus's way (pipeline/embed.py) is for rows that nobody could hold in memory; here the caller
holds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import IncompleteRun, ModelError
from stella_ray.pipeline.cluster import Pool
from stella_ray.pipeline.encode import EncodeBlocks

if TYPE_CHECKING:
    from stella_ray.encode.encoder import Encoder

LEAST_ROWS = 64
"""Of a window, where there are fewer texts than windows for everybody: below, calls cost more than
padding."""

WINDOWS_EACH = 4
"""Windows for an encoder at least, so that none is left with a whole one when the others are
done."""

CHARACTERS_WORTH_AN_ENCODER = 30_000
"""Below, starting one more process and loading the model there costs more than it brings: some 10 s
of a core, in which a small model embeds as much."""

CHARACTERS = 4_000_000
"""Characters of a window, unless a single text has more."""


class EncodeTexts(EncodeBlocks):
    """The same actor for bare texts."""

    def embed(self, texts: pa.Array) -> np.ndarray:
        """Embed one window, whose texts have their prefixes: float32 [texts, dim].

        Raises:
            ModelError: a text that the encoder raises on.
        """
        encoder = self.loading.result()
        rows = texts.to_pylist()
        with self.computing():
            found = encoder.embed_tokens(encoder.tokenizer(rows))
        for row, reason in found.faults.items():
            raise ModelError(f"a text can't be embedded ({reason}): {rows[row][:60]!r}")
        return found.vectors

    def ready(self) -> None:
        """Return when the encoder is loaded.

        Raises:
            ModelError: it can't be.
        """
        self.loading.result()


class Embedders:
    """Encoder actors that stay for many calls, and go with the `with` block.

    The first sets off with the block, to load beside what the caller prepares; more are started
    where a call has windows for them. Each gets its first window when it has loaded: one that is
    slow to start, or finds no room on the cluster, keeps nobody waiting.

    Args:
        settings: the encoder.
        digest: of its fingerprint.
        pool: sizes.
        opened: how an actor comes by the encoder; by default it loads what the settings name.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        digest: str,
        pool: Pool,
        opened: Callable[[EncoderSettings, str], Encoder] | None = None,
    ) -> None:
        self.pool = pool
        self._arguments = (settings, digest, pool.threads, True, opened)
        self._ready: list[Any] = []
        self._coming: dict[Any, Any] = {}

    def __enter__(self) -> Embedders:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for actor in (*self._ready, *self._coming.values()):
            ray.kill(actor)
        self._ready, self._coming = [], {}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts that have their prefixes already; equal ones once.

        1. Order the distinct texts by length, longest first: a window's texts are alike, and the
        last windows are the quick ones. 2. Give each idle encoder the next window; only windows
        under way are copied. 3. Put the vectors where their texts stand.

        Returns:
            Unit vectors in the order of `texts`, float32 [texts, dim]; [0, 0] for none.

        Raises:
            ModelError: a text that the encoder raises on.
            IncompleteRun: the encoders' processes kept dying, or nothing came back for long.
        """
        number: dict[str, int] = {}
        same_as = np.array([number.setdefault(text, len(number)) for text in texts], np.int64)
        distinct = list(number)
        out: np.ndarray | None = None
        for members, vectors in self._embedded(distinct):
            if out is None:
                out = np.full((len(distinct), vectors.shape[1]), np.nan, np.float32)
            out[members] = vectors
        if out is None:
            return np.empty((0, 0), np.float32)
        assert np.isfinite(out).all(), "texts were lost; this is a bug"
        return out if len(distinct) == len(texts) else out[same_as]

    def _embedded(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Windows' members and vectors, as they come."""
        todo = list(windows(texts, self.pool))[::-1]  # pop() takes the longest
        worth = 1 + sum(map(len, texts)) // CHARACTERS_WORTH_AN_ENCODER
        wanted = min(self.pool.encoders, len(todo), worth)
        for _ in range(wanted - len(self._ready) - len(self._coming)):
            self._start()
        flying: dict[Any, tuple[np.ndarray, Any]] = {}
        idle = self._ready * self.pool.windows_at_once
        try:
            while todo or flying:
                while todo and idle:
                    members, actor = todo.pop(), idle.pop()
                    window = pa.array([texts[i] for i in members.tolist()], pa.large_string())
                    flying[actor.embed.remote(window)] = members, actor
                done = self._wait([*flying, *(self._coming if todo else ())])
                if done in flying:
                    members, actor = flying.pop(done)
                    idle.append(actor)
                    yield members, ray.get(done)
                else:
                    ray.get(done)
                    self._ready.append(self._coming.pop(done))
                    idle += self._ready[-1:] * self.pool.windows_at_once
        except ray.exceptions.RayActorError as error:
            raise IncompleteRun(
                "the encoders' processes kept dying"
                f" ({' '.join(str(error).split())[:200]}); look for a lack of memory"
            ) from error

    def _wait(self, calls: list[Any]) -> Any:
        """The first call that is done."""
        done, _ = ray.wait(calls, timeout=self.pool.no_progress_seconds)
        if not done:
            raise IncompleteRun(
                f"no window was embedded for {self.pool.no_progress_seconds} seconds; expected one,"
                " so see whether the cluster still has its nodes"
            )
        return done[0]

    def _start(self) -> None:
        """Start an actor that comes back when its process dies, and has its windows again."""
        actor = (
            ray.remote(EncodeTexts)
            .options(
                num_cpus=self.pool.cpus_per_encoder,
                num_gpus=self.pool.gpus_per_encoder or None,
                max_restarts=self.pool.window_retries,
                max_task_retries=self.pool.window_retries,
                max_concurrency=self.pool.windows_at_once,
            )
            .remote(*self._arguments)
        )
        self._coming[actor.ready.remote()] = actor


def windows(texts: Sequence[str], pool: Pool) -> Iterator[np.ndarray]:
    """The numbers of texts in windows, the longest first, int64 [rows] each."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    order = np.argsort(-lengths, kind="stable")
    share = -(-len(texts) // (pool.encoders * pool.windows_at_once * WINDOWS_EACH))
    rows = min(pool.window_rows, max(LEAST_ROWS, share))
    start = 0
    while start < len(order):  # order is longest first, so a window's first text bounds the others
        count = max(1, min(rows, CHARACTERS // max(1, int(lengths[order[start]]))))
        yield order[start : start + count]
        start += count
