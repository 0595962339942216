"""Text to unit vectors: the one inference path of embedding, training and evaluation."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor

from stella_ray.encode import attention
from stella_ray.encode.batching import batches
from stella_ray.encode.faults import Budget, check_ids, one_line, out_of_memory
from stella_ray.encode.loading import find_device, find_dtype, load_model
from stella_ray.encode.models import EncoderSettings, EncoderSpec, find_encoder
from stella_ray.encode.reference import plain_vectors
from stella_ray.encode.tokens import Ragged, TextTokenizer
from stella_ray.errors import ModelError, SettingsError

log = logging.getLogger(__name__)

CPU_TOKEN_BUDGET, CUDA_TOKEN_BUDGET = 2_048, 65_536
ROWS_PER_WINDOW = 4_096
"""Texts that `embed` orders by length together: 3% padding, where 128 leave 12%."""


@dataclass
class Embedded:
    """What a window of rows gave.

    Attributes:
        vectors: unit vectors in the order of the rows, float32 [rows, dim].
        padded_tokens: tokens the device worked on for each row, padding included; 0 for a row whose
            text stood in the window before and for one at fault, int32 [rows].
        seconds: time of each row's share of its batch, float32 [rows].
        faults: rows that the encoder raises on and why, in one line; their vectors are zeros.
    """

    vectors: np.ndarray
    padded_tokens: np.ndarray
    seconds: np.ndarray
    faults: dict[int, str]


class Encoder:
    """A sentence encoder: `Encoder("infgrad/stella-base-zh").embed(["…"])`.

    Vectors are L2-normalised always. They don't depend on a text's neighbours in the batch: cosine
    >= 0.9999 to transformers' plain forward of one text at a time in float32, >= 0.999 in bfloat16.

    Args:
        encoder: a hub id, a folder, a bundled name, or full settings.

    Raises:
        ModelError: no such model, or a folder that can't serve as an encoder.
        SettingsError: settings that this device or model can't meet.
    """

    def __init__(self, encoder: str | EncoderSettings) -> None:
        settings = EncoderSettings(path=encoder) if isinstance(encoder, str) else encoder
        self.spec: EncoderSpec = find_encoder(settings)
        self.tokenizer = TextTokenizer(self.spec.folder, self.spec.max_tokens)
        self.device = find_device(settings.device)
        self.dtype = find_dtype(settings.dtype, self.device)
        self.packed = (
            self.device.type == "cuda"
            and self.dtype != torch.float32
            and self.spec.model_type in attention.PACKABLE
        )
        usual = CUDA_TOKEN_BUDGET if self.device.type == "cuda" else CPU_TOKEN_BUDGET
        most = settings.token_budget or max(usual, self.spec.max_tokens)
        if most < self.spec.max_tokens:
            raise SettingsError(
                f"token_budget {most} can't hold a row of max_tokens {self.spec.max_tokens};"
                " raise the one or lower the other"
            )
        self.budget = Budget(most=most, least=self.spec.max_tokens)
        self.model = load_model(self.spec, self.dtype, packed=self.packed).to(self.device)
        self.vocabulary = int(self.model.get_input_embeddings().num_embeddings)

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.spec.dim

    def embed(self, texts: Sequence[str], prefix: str = "passage") -> np.ndarray:
        """Embed texts of any length and number.

        Args:
            texts: cut at max_tokens.
            prefix: passage, query, none, or the literal text to put first.

        Returns:
            Unit vectors in the order of `texts`, float32 [rows, dim].

        Raises:
            ModelError: a text that the encoder raises on.
        """
        if isinstance(texts, str):
            raise SettingsError(
                "embed() takes a list of texts; found a single string, put it in a list"
            )
        out = np.empty((len(texts), self.dim), np.float32)
        first = self.spec.prefix_text(prefix)
        for start in range(0, len(texts), ROWS_PER_WINDOW):
            window = texts[start : start + ROWS_PER_WINDOW]
            found = self.embed_tokens(self.tokenizer(window, first))
            for row, reason in found.faults.items():
                raise ModelError(
                    f"text {start + row} of {len(texts)} can't be embedded ({reason}); leave it out"
                )
            out[start : start + len(window)] = found.vectors
        return out

    def embed_tokens(self, rows: Ragged) -> Embedded:
        """Embed one window of tokenised rows; rows of equal ids are encoded once.

        1. Find the distinct rows. 2. Cut them into batches, longest first. 3. Run each: with a
        smaller budget where the device runs out of memory, and in halves where it raises anything
        else, down to the single rows at fault. 4. Put the vectors back in order.

        Raises:
            ModelError: not even a row fits the device; or the encoder raises on the empty text too,
                so that it is the encoder that is at fault and no row.
            torch.AcceleratorError: the device is lost to this process.
        """
        first, same_as = _distinct(rows)
        lengths = rows.lengths[first]
        vectors = np.zeros((len(first), self.dim), np.float32)
        padded = np.zeros(len(rows.lengths), np.int32)
        seconds = np.zeros(len(rows.lengths), np.float32)
        faults: dict[int, str] = {}
        todo = self._cut(lengths, np.arange(len(first)))
        while todo:
            members = todo.pop()
            began = time.perf_counter()
            found = self._attempt([_ids(rows, first[i]) for i in members])
            if isinstance(found, np.ndarray):
                vectors[members] = found
                width = lengths[members] if self.packed else lengths[members].max()
                padded[first[members]] = width
                seconds[first[members]] = (time.perf_counter() - began) / len(members)
                self.budget.went_well()
            elif out_of_memory(found):
                self._shrink(lengths[members])
                todo = self._cut(lengths, np.sort(np.concatenate([members, *todo])))
            elif len(members) > 1:
                middle = len(members) // 2
                todo += [members[middle:], members[:middle]]
            else:
                self._check_soundness()
                faults[int(members[0])] = one_line(found)
        wrong = {i: faults[n] for i, n in enumerate(same_as.tolist()) if n in faults}
        return Embedded(vectors[same_as], padded, seconds, wrong)

    def reference(self, rows: Ragged) -> np.ndarray:
        """The same vectors the plain way, to check the others by: slow, for samples.

        transformers' own forward in float32, one row at a time: nothing cut, padded or packed. An
        encoder of other numbers loads its weights once more for it, the first time.

        Returns:
            Unit vectors, NaN for a row that the model raises on, float32 [rows, dim].

        Raises:
            ModelError: the weights can't be loaded again.
            torch.OutOfMemoryError: the device has no room for a second model (RuntimeError or
                MemoryError on a CPU).
            torch.AcceleratorError: the device is lost to this process.
        """
        as_it_is = self.dtype == torch.float32 and not self.packed
        return plain_vectors(self.model if as_it_is else self._float32, rows, self.spec.pooling)

    @functools.cached_property
    def _float32(self) -> transformers.PreTrainedModel:
        return load_model(self.spec, torch.float32, packed=False).to(self.device)

    def _cut(self, lengths: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
        """Batches of these rows by the budget now, the longest last, where pop() takes it."""
        cut = batches(lengths[members], self.budget.now, packed=self.packed)
        return [members[batch] for batch in cut][::-1]

    def _attempt(self, rows: list[np.ndarray]) -> np.ndarray | Exception:
        """A batch's vectors, or what it raised, unless the device is lost."""
        try:
            return self._forward(rows)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            return error.with_traceback(None)  # its frames hold on to the batch's memory

    def _shrink(self, lengths: np.ndarray) -> None:
        if not self.budget.halve():
            raise ModelError(
                f"out of device memory with {len(lengths)} row(s) of up to {lengths.max()} tokens;"
                " lower max_tokens or use a larger device"
            )
        torch.cuda.empty_cache()
        log.warning("out of device memory: token budget is now %s", self.budget.now)

    def _check_soundness(self) -> None:
        """Encode the empty text, before a row is blamed for what the encoder raised on it.

        Not "did any other row succeed?": texts that failed last night are all that is fresh on a
        night without changes.
        """
        empty = self.tokenizer([""], self.spec.prefix_text(self.spec.prefix))
        try:
            self._forward([empty.values])
        except torch.AcceleratorError:
            raise
        except Exception as error:
            raise ModelError(
                f"{self.spec.name} raises on every text, even the empty one ({one_line(error)});"
                " expected a model that works with these settings"
            ) from error

    @torch.inference_mode()
    def _forward(self, rows: list[np.ndarray]) -> np.ndarray:
        """One batch of token ids to unit vectors, float32 [rows, dim]; longest row first."""
        check_ids(np.concatenate(rows), self.vocabulary)
        pooled = self._packed(rows) if self.packed else self._padded(rows)
        vectors: np.ndarray = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return vectors

    def _padded(self, rows: list[np.ndarray]) -> Tensor:
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), self.model.config.pad_token_id or 0, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        mask_BT = torch.from_numpy(mask).to(self.device)
        hidden_BTD: Tensor = self.model(
            input_ids=torch.from_numpy(ids).to(self.device), attention_mask=mask_BT
        ).last_hidden_state.float()
        if self.spec.pooling == "cls":
            return hidden_BTD[:, 0]
        weight_BT1 = mask_BT[:, :, None].float()
        return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)

    def _packed(self, rows: list[np.ndarray]) -> Tensor:
        lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        if self.spec.model_type != "bert":  # RoBERTa's positions start behind the pad's
            positions = positions + self.model.config.pad_token_id + 1
        ids_1T = torch.from_numpy(np.concatenate(rows).astype(np.int64))[None].to(self.device)
        cu = torch.from_numpy(starts.astype(np.int32)).to(self.device)
        hidden_TD: Tensor = self.model(
            input_ids=ids_1T,
            position_ids=torch.from_numpy(positions)[None].to(self.device),
            token_type_ids=torch.zeros_like(ids_1T),
            cu_seq_lens_q=cu,
            max_length_q=int(lengths.max()),
        ).last_hidden_state[0]
        if self.spec.pooling == "cls":
            return hidden_TD[cu[:-1].long()].float()
        lengths_B = torch.from_numpy(lengths).to(self.device)
        pooled_BD: Tensor = torch.segment_reduce(hidden_TD.float(), "mean", lengths=lengths_B)
        return pooled_BD


def _ids(rows: Ragged, i: int) -> np.ndarray:
    return rows.values[rows.offsets[i] : rows.offsets[i + 1]]


def _distinct(rows: Ragged) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each distinct text, int64 [distinct], and which of them each is, [rows]."""
    first: list[int] = []
    number: dict[bytes, int] = {}
    same_as = np.empty(len(rows.lengths), np.int64)
    for i in range(len(same_as)):
        ids = _ids(rows, i).tobytes()
        if ids not in number:
            number[ids] = len(first)
            first.append(i)
        same_as[i] = number[ids]
    return np.asarray(first, np.int64), same_as
