"""The encoder as an actor: token ids in, vectors out.

torch is imported where the encoder is made, not with this file: the driver and the tasks that read
and write have no use for it (4 s and 400 MB a process).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stella_ray.encode.models import EncoderSettings
from stella_ray.encode.tokens import Ragged
from stella_ray.errors import ModelMismatch
from stella_ray.pipeline.cluster import keep_ray_data_quiet
from stella_ray.pipeline.windows import WindowBook
from stella_ray.rows import FRESH, REJECTED, WINDOW, embedded, key_array

if TYPE_CHECKING:
    from stella_ray.encode.embedded import Embedded
    from stella_ray.encode.encoder import Encoder

log = logging.getLogger(__name__)

ROWS_PER_SAMPLE, SAMPLES = 128, 64
"""One row in so many is encoded a second time, the plain way, until an actor has so many: 64 rows
miss an encoder that is wrong for a tenth of them once in 800 times (0.9**64), and take seconds."""


class EncodeBlocks:
    """An actor that holds the encoder: prepared blocks in, embedded ones out.

    It may be called from several threads at once: while one window is on the device, the vectors of
    the one before are put together and shipped.

    Args:
        settings: the encoder.
        digest: of the fingerprint that rows were keyed with.
        threads: of the CPU, for one window.
        at_once: load the encoder beside the readers' first work, not with the first row that needs
            it: right where much is new, a waste on a night without changes.
        opened: how to come by the encoder.
        tags: of the metrics that it tells, the run and its table; None: it tells none.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        digest: str,
        threads: int,
        at_once: bool = True,
        opened: Callable[[EncoderSettings, str], Encoder] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        keep_ray_data_quiet()
        wait_asleep()
        self.threads = threads
        self.samples_left = SAMPLES
        self.book = WindowBook(tags)
        self._sampling = threading.Lock()
        self._load = functools.partial(opened or load, settings, digest)
        self._loader, self._begun = ThreadPoolExecutor(1), threading.Lock()
        if at_once:
            self.loading  # noqa: B018 - begins it

    @property
    def loading(self) -> Future[Encoder]:
        """The encoder on its way; asked for the first time, it sets off."""
        with self._begun:
            if not hasattr(self, "_loading"):
                self._loading = self._loader.submit(self._load)
            return self._loading

    def __call__(self, block: pa.Table) -> pa.Table:
        """Embed one window."""
        fresh = np.flatnonzero(np.asarray(block.column("fate").to_pylist(), object) == FRESH)
        if not len(fresh):
            return with_vectors(block, fresh)
        encoder = self.loading.result()
        began, rows = time.time(), block.take(fresh)
        with self.computing():
            found = encoder.embed_tokens(tokens_of(rows))
            window = self.book.note(encoder, rows, found, began)
            references = self.references(encoder, block, np.delete(fresh, list(found.faults)))
        return with_vectors(block, fresh, found, references, window)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Let torch use this actor's threads; where the device is lost, the process goes."""
        import torch

        torch.set_num_threads(self.threads)  # counts for the thread that calls it alone
        try:
            yield
        except torch.AcceleratorError as error:
            # After an illegal access or a failed assert on the device, nothing in this process can
            # succeed any more; Ray starts another.
            log.error("the device is lost, leaving the process: %s", error)
            os._exit(70)

    def references(
        self, encoder: Encoder, block: pa.Table, rows: np.ndarray
    ) -> dict[int, np.ndarray]:
        """Encode a sample of the window's rows a second time, the plain way.

        A sample that can't be had (the float32 weights don't fit beside the encoder, say) is no
        reason to stop; nor is it tried again.

        Args:
            encoder: what encoded them.
            block: the window, `rows.prepared`.
            rows: the numbers of the rows that have a vector.

        Returns:
            Reference vectors by the number of their row, float32 [dim] each.
        """
        import torch

        with self._sampling:
            count = min(-(-len(rows) // ROWS_PER_SAMPLE), self.samples_left)
            self.samples_left -= count
        if not count:
            return {}
        keys = key_array(block)
        # By a hash, so that a window that is tried again after a crash has the same sample.
        order = sorted(rows.tolist(), key=lambda row: zlib.crc32(keys[row].tobytes()))[:count]
        try:
            vectors = encoder.reference(tokens_of(block.take(order)))
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self.samples_left = 0
            log.warning("no vectors to check the encoder by: %s", " ".join(str(error).split()))
            return {}
        return dict(zip(order, vectors, strict=True))


def wait_asleep() -> None:
    """Let torch's threads sleep while they wait for one another; before torch is imported.

    By default they spin, and on cores that reading and writing tasks have work for too, each takes
    the other's turn: with one busy process beside two threads, a window takes 3 times as long; with
    two, 6 times.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load(settings: EncoderSettings, digest: str) -> Encoder:
    """Load the encoder, and check that it is the one that the driver keyed the rows with.

    Raises:
        ModelMismatch: it isn't; a hub's branch moved, or the nodes' folders differ.
        StellaError: it can't be loaded here.
    """
    from stella_ray import Encoder

    encoder = Encoder(settings)
    here = encoder.spec.fingerprint["digest"]
    if here != digest:
        raise ModelMismatch(
            f"{encoder.spec.folder} on {platform.node()} is another encoder ({here}) than the"
            f" driver's {encoder.spec.name} ({digest}); give every node the same files, or pin a"
            " hub model with --encoder.revision"
        )
    return encoder


def tokens_of(rows: pa.Table) -> Ragged:
    """The token ids of prepared rows, without a copy."""
    ids: Any = rows.column("token_ids").combine_chunks()
    offsets = ids.offsets.to_numpy().astype(np.int64)
    return Ragged(ids.flatten().to_numpy(), offsets - offsets[:1], np.zeros(len(rows), bool))


def with_vectors(
    block: pa.Table,
    fresh: np.ndarray,
    found: Embedded | None = None,
    references: Mapping[int, np.ndarray] | None = None,
    window: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Prepared rows as embedded ones, `rows.embedded`; those the encoder raised on are rejected.

    Args:
        block: of the schema `rows.prepared`.
        fresh: the numbers of its fresh rows, which alone get a vector.
        found: what the encoder gave for them; None where there are none.
        references: sampled rows' second vectors, by the number of their row.
        window: what the encoder took for them, `rows.WINDOW`.
    """
    vectors: dict[int, np.ndarray] = {}
    padded, spent = np.zeros(len(block), np.int32), np.zeros(len(block), np.float32)
    fates, reasons = (block.column(name).to_pylist() for name in ("fate", "reason"))
    if found:
        vectors = dict(zip(fresh.tolist(), found.vectors, strict=True))
        padded[fresh], spent[fresh] = found.padded_tokens, found.seconds
        for i, reason in found.faults.items():
            row = int(fresh[i])
            del vectors[row]
            fates[row] = REJECTED
            reasons[row] = f"the encoder failed on this text ({reason})"
    windows: list[Mapping[str, Any] | None] = [None] * len(block)
    if window:
        windows[int(fresh[0])] = window
    new = {
        "fate": pa.array(fates, pa.string()),
        "reason": pa.array(reasons, pa.string()),
        "vector": _lists(vectors, len(block)),
        "reference": _lists(references or {}, len(block)),
        "padded_tokens": pa.array(padded),
        "encode_seconds": pa.array(spent),
        "window": pa.array(windows, WINDOW),
    }
    schema = embedded(block.schema)
    return pa.table(
        {name: new[name] if name in new else block.column(name) for name in schema.names},
        schema=schema,
    )


def _lists(vectors: Mapping[int, np.ndarray], rows: int) -> pa.Array:
    """A list column that holds these vectors at their rows, and else empty lists."""
    order = sorted(vectors)
    widths = np.zeros(rows, np.int64)
    widths[order] = [len(vectors[row]) for row in order]
    flat = np.concatenate([np.empty(0, np.float32), *(vectors[row] for row in order)])
    offsets = pa.array(np.concatenate([[0], np.cumsum(widths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(flat))
