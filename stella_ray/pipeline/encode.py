"""The encoder as an actor: token ids in, vectors out.

torch is imported where the encoder is made, not with this file: the driver and the tasks that read
and write have no use for it (4 s and 400 MB a process).
"""

from __future__ import annotations

import logging
import os
import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stella_ray.encode.models import EncoderSettings
from stella_ray.encode.tokens import Ragged
from stella_ray.errors import ModelMismatch, StellaError
from stella_ray.pipeline.cluster import keep_ray_data_quiet
from stella_ray.rows import FRESH, embedded

if TYPE_CHECKING:
    from stella_ray.encode.encoder import Encoder

log = logging.getLogger(__name__)


class EncodeBlocks:
    """An actor that holds the encoder: prepared blocks in, embedded ones out."""

    def __init__(self, settings: EncoderSettings, digest: str, threads: int) -> None:
        import torch

        from stella_ray.encode.encoder import Encoder

        keep_ray_data_quiet()
        torch.set_num_threads(threads)
        self.failure: StellaError | None = None
        try:
            self.encoder = Encoder(settings)
            check_digest(self.encoder, digest)
        except StellaError as error:
            # Ray tells of a constructor's exception as text only; __call__'s arrives as it is.
            self.failure = error

    def __call__(self, block: pa.Table) -> pa.Table:
        """Embed one window."""
        import torch

        if self.failure is not None:
            raise self.failure
        try:
            return encode(block, self.encoder)
        except torch.AcceleratorError as error:
            # After an illegal access or a failed assert on the device, nothing in this process can
            # succeed any more; Ray starts another.
            log.error("the device is lost, leaving the process: %s", error)
            os._exit(70)


def check_digest(encoder: Encoder, digest: str) -> None:
    """Check that this node's copy is the encoder that the driver keyed the rows with.

    Raises:
        ModelMismatch: it isn't; a hub's branch moved, or the nodes' folders differ.
    """
    here = encoder.spec.fingerprint["digest"]
    if here != digest:
        raise ModelMismatch(
            f"{encoder.spec.folder} on {platform.node()} is another encoder ({here}) than the"
            f" driver's {encoder.spec.name} ({digest}); give every node the same files, or pin a"
            " hub model with --encoder.revision"
        )


def encode(block: pa.Table, encoder: Encoder) -> pa.Table:
    """Embed the fresh rows of one window, `rows.prepared` to `rows.embedded`; other rows pass."""
    fates = np.asarray(block.column("fate").to_pylist(), object)
    fresh = np.flatnonzero(fates == FRESH)
    rows = block.take(fresh)
    ids: Any = rows.column("token_ids").combine_chunks()
    tokens = Ragged(
        ids.flatten().to_numpy(), ids.offsets.to_numpy().astype(np.int64) - ids.offsets[0].as_py(),
        np.zeros(len(rows), bool),
    )  # fmt: skip
    done = encoder.embed_tokens(tokens)
    widths = np.zeros(len(block), np.int64)
    widths[fresh] = encoder.dim
    padded, seconds = np.zeros(len(block), np.int32), np.zeros(len(block), np.float32)
    padded[fresh], seconds[fresh] = done.padded_tokens, done.seconds
    offsets = pa.array(np.concatenate([[0], np.cumsum(widths)]), pa.int32())
    vectors = pa.ListArray.from_arrays(offsets, pa.array(done.vectors.reshape(-1)))
    schema = embedded(block.schema)
    new = {
        "vector": vectors,
        "padded_tokens": pa.array(padded),
        "encode_seconds": pa.array(seconds),
    }
    return pa.table(
        {name: new[name] if name in new else block.column(name) for name in schema.names},
        schema=schema,
    )
