"""Lists of texts to vectors by the embedding actors: what evaluation and round trips ask for.

The corpus's way (pipeline/embed.py) is for rows that nobody could hold in memory; here the caller
holds them all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import ModelError
from stella_ray.pipeline.cluster import Pool, configure_data
from stella_ray.pipeline.encode import EncodeBlocks

if TYPE_CHECKING:
    from stella_ray.encode.encoder import Encoder

ROWS_PER_BLOCK = 1_024


class EncodeTexts(EncodeBlocks):
    """The same actor for bare texts: columns number and text in, number and vector out."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """Embed one window, whose texts have their prefixes.

        Raises:
            ModelError: a text that the encoder raises on.
        """
        encoder = self.loading.result()
        import torch

        torch.set_num_threads(self.threads)
        texts = block.column("text").to_pylist()
        found = encoder.embed_tokens(encoder.tokenizer(texts))
        for row, reason in found.faults.items():
            raise ModelError(f"a text can't be embedded ({reason}): {texts[row][:60]!r}")
        flat = pa.array(found.vectors.reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, found.vectors.shape[1])
        return pa.table({"number": block.column("number"), "vector": vectors})


def embed_texts(
    texts: Sequence[str],
    settings: EncoderSettings,
    digest: str,
    pool: Pool,
    opened: Callable[[EncoderSettings, str], Encoder] | None = None,
) -> np.ndarray:
    """Embed texts that have their prefixes already.

    Args:
        texts: any number.
        settings: the encoder.
        digest: of its fingerprint.
        pool: sizes.
        opened: how an actor comes by the encoder; by default it loads what the settings name.

    Returns:
        Unit vectors in the order of `texts`, float32 [texts, dim].
    """
    configure_data(pool, ray.data.DataContext.get_current())
    blocks = list(_blocks(texts))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        embedded = ray.data.from_arrow(blocks).map_batches(
            EncodeTexts,
            fn_constructor_args=(settings, digest, pool.threads, True, opened),
            compute=ActorPoolStrategy(size=min(pool.encoders, len(blocks))),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=pool.cpus_per_encoder,
            num_gpus=pool.gpus_per_encoder or None,
            max_task_retries=pool.window_retries,
        )
    out: np.ndarray | None = None
    for block in embedded.iter_batches(batch_size=None, batch_format="pyarrow"):
        column = block.column("vector").combine_chunks()
        vectors = column.flatten().to_numpy().reshape(len(block), -1)
        if out is None:
            out = np.full((len(texts), vectors.shape[1]), np.nan, np.float32)
        out[block.column("number").to_numpy()] = vectors
    assert out is not None, "no texts; this is a bug"
    assert np.isfinite(out).all(), "texts were lost; this is a bug"
    return out


def _blocks(texts: Sequence[str]) -> Iterator[pa.Table]:
    for first in range(0, len(texts), ROWS_PER_BLOCK):
        part = texts[first : first + ROWS_PER_BLOCK]
        yield pa.table({"number": np.arange(first, first + len(part)), "text": list(part)})
