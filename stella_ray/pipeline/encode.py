"""The encoder as an actor: token ids in, vectors out.

torch is imported where the encoder is made, not with this file: the driver and the tasks that read
and write have no use for it (4 s and 400 MB a process).
"""

from __future__ import annotations

import logging
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stella_ray.encode.models import EncoderSettings
from stella_ray.encode.tokens import Ragged
from stella_ray.errors import ModelMismatch
from stella_ray.pipeline.cluster import keep_ray_data_quiet
from stella_ray.rows import FRESH, embedded

if TYPE_CHECKING:
    from stella_ray.encode.encoder import Encoder

log = logging.getLogger(__name__)


class EncodeBlocks:
    """An actor that holds the encoder: prepared blocks in, embedded ones out.

    The encoder loads beside the readers' first work. Windows without a fresh row don't wait for it,
    so a night without changes ends before it is there.
    """

    def __init__(self, settings: EncoderSettings, digest: str, threads: int) -> None:
        keep_ray_data_quiet()
        self.threads = threads
        self.loading = ThreadPoolExecutor(1).submit(load, settings, digest)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Embed one window."""
        fresh = np.flatnonzero(np.asarray(block.column("fate").to_pylist(), object) == FRESH)
        if not len(fresh):
            return with_vectors(block, fresh, np.empty((0, 0), np.float32), 0, 0.0)
        encoder = self.loading.result()
        import torch

        torch.set_num_threads(self.threads)  # counts for the thread that calls it alone
        try:
            done = encoder.embed_tokens(tokens_of(block.take(fresh)))
        except torch.AcceleratorError as error:
            # After an illegal access or a failed assert on the device, nothing in this process can
            # succeed any more; Ray starts another.
            log.error("the device is lost, leaving the process: %s", error)
            os._exit(70)
        return with_vectors(block, fresh, done.vectors, done.padded_tokens, done.seconds)


def load(settings: EncoderSettings, digest: str) -> Encoder:
    """Load the encoder, and check that it is the one that the driver keyed the rows with.

    Raises:
        ModelMismatch: it isn't; a hub's branch moved, or the nodes' folders differ.
        StellaError: it can't be loaded here.
    """
    from stella_ray.encode.encoder import Encoder

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
    vectors: np.ndarray,
    padded_tokens: np.ndarray | int,
    seconds: np.ndarray | float,
) -> pa.Table:
    """Prepared rows as embedded ones, `rows.embedded`.

    Args:
        block: of the schema `rows.prepared`.
        fresh: the numbers of its fresh rows, which alone get a vector.
        vectors: theirs, float32 [fresh, dim].
        padded_tokens: tokens that the device worked on for each of them.
        seconds: time of each.
    """
    widths = np.zeros(len(block), np.int64)
    widths[fresh] = vectors.shape[1]
    padded, spent = np.zeros(len(block), np.int32), np.zeros(len(block), np.float32)
    padded[fresh], spent[fresh] = padded_tokens, seconds
    offsets = pa.array(np.concatenate([[0], np.cumsum(widths)]), pa.int32())
    new = {
        "vector": pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1))),
        "padded_tokens": pa.array(padded),
        "encode_seconds": pa.array(spent),
    }
    schema = embedded(block.schema)
    return pa.table(
        {name: new[name] if name in new else block.column(name) for name in schema.names},
        schema=schema,
    )
