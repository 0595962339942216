"""Vectors the plain way, to check by: nothing here is shared with the path that is checked."""

from __future__ import annotations

import logging

import numpy as np
import torch
import transformers

from stella_ray.encode.faults import check_ids, one_line, out_of_memory
from stella_ray.encode.tokens import Ragged

log = logging.getLogger(__name__)


def plain_vectors(model: transformers.PreTrainedModel, rows: Ragged, pooling: str) -> np.ndarray:
    """The unit vectors of rows that meet the model one by one, without cutting or padding.

    Args:
        model: in float32, with an attention of transformers' own.
        rows: token ids.
        pooling: mean or cls.

    Returns:
        float32 [rows, dim]; NaN for a row that the model raises on.

    Raises:
        torch.AcceleratorError: the device is lost to this process.
        torch.OutOfMemoryError: it is full (on a CPU: RuntimeError or MemoryError).
    """
    out = np.full((len(rows.lengths), model.config.hidden_size), np.nan, np.float32)
    for i in range(len(out)):
        ids = rows.values[rows.offsets[i] : rows.offsets[i + 1]]
        try:
            out[i] = _vector(model, ids.astype(np.int64), pooling)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            log.warning("no reference vector for a row: %s", one_line(error))
    return out


@torch.inference_mode()
def _vector(model: transformers.PreTrainedModel, ids: np.ndarray, pooling: str) -> np.ndarray:
    check_ids(ids, model.get_input_embeddings().num_embeddings)
    ids_1T = torch.from_numpy(ids)[None].to(model.device)
    mask_1T = torch.ones_like(ids_1T)
    hidden_TD = model(input_ids=ids_1T, attention_mask=mask_1T).last_hidden_state[0]
    pooled_D = hidden_TD[0] if pooling == "cls" else hidden_TD.mean(0)
    vector: np.ndarray = (pooled_D / pooled_D.norm()).cpu().numpy()
    return vector
