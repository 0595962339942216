"""Text to unit vectors: the one inference path of embedding, training and evaluation."""

from __future__ import annotations

import functools
import logging
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
import transformers

from stella_ray.encode.batching import batches
from stella_ray.encode.embedded import Embedded
from stella_ray.encode.faults import Budget, check_ids, one_line, out_of_memory
from stella_ray.encode.forward import Forward, PaddedForward, Pending, load_forward
from stella_ray.encode.loading import load_model
from stella_ray.encode.models import EncoderSettings, EncoderSpec, find_encoder
from stella_ray.encode.probe import find_budget
from stella_ray.encode.reference import plain_vectors
from stella_ray.encode.tokens import Ragged, TextTokenizer
from stella_ray.errors import ModelError, SettingsError

log = logging.getLogger(__name__)

ROWS_PER_WINDOW = 4_096
"""Texts that `embed` orders by length together: 3% padding, where 128 leave 12%."""

BATCHES_AHEAD = 3
"""Batches that a GPU is given before the first one's vectors are waited for, so that it never waits
for the interpreter. They share their memory: a stream works at one after another."""


class Encoder:
    """A sentence encoder: `Encoder("infgrad/stella-base-zh").embed(["…"])`.

    Vectors are L2-normalised always. They don't depend on a text's neighbours in the batch: cosine
    >= 0.9999 to transformers' plain forward of one text at a time in float32, >= 0.999 in bfloat16.
    Several threads may embed at once: the device computes one's batches while another waits for its
    vectors.

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
        self.forward, self.device = load_forward(self.spec, settings)
        most = settings.token_budget or max(self.forward.token_budget, self.spec.max_tokens)
        if most < self.spec.max_tokens:
            raise SettingsError(
                f"token_budget {most} can't hold a row of max_tokens {self.spec.max_tokens};"
                " raise the one or lower the other"
            )
        self.budget = Budget(most=most, least=self.spec.max_tokens)
        self._launching = threading.Lock()
        if self.device.type == "cuda":
            self._warm_up(settings.token_budget)

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
        flying: deque[tuple[np.ndarray, Pending]] = deque()
        ahead = BATCHES_AHEAD if self.device.type == "cuda" else 1
        while todo or flying:
            if not todo or len(flying) >= ahead:
                members, pending = flying.popleft()
                vectors[members], took = pending.result()
                width = lengths[members] if self.forward.packed else lengths[members].max()
                padded[first[members]] = width
                seconds[first[members]] = took / len(members)
                self.budget.went_well()
                continue
            members = todo.pop()
            found = self._attempt([_ids(rows, first[i]) for i in members])
            if isinstance(found, Pending):
                flying.append((members, found))
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
        plain = self.forward.plain if isinstance(self.forward, PaddedForward) else None
        return plain_vectors(plain or self._float32, rows, self.spec.pooling)

    @functools.cached_property
    def _float32(self) -> transformers.PreTrainedModel:
        return load_model(self.spec, torch.float32, packed=False).to(self.device)

    def _cut(self, lengths: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
        """Batches of these rows by the budget now, the longest last, where pop() takes it."""
        cut = batches(lengths[members], self.budget.now, packed=self.forward.packed)
        return [members[batch] for batch in cut][::-1]

    def _attempt(self, rows: list[np.ndarray]) -> Pending | Exception:
        """A batch on its way, or what it raised, unless the device is lost."""
        try:
            return self._launch(rows)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            return error.with_traceback(None)  # its frames hold on to the batch's memory

    @torch.inference_mode()
    def _launch(self, rows: list[np.ndarray]) -> Pending:
        """Send a batch of token ids through the model; longest row first."""
        check_ids(np.concatenate(rows), self.forward.vocabulary)
        with self._launching:  # two threads' batches would share a stream kernel by kernel
            return Pending(self.forward, rows, self.device)

    def _warm_up(self, asked: int) -> None:
        """Compile the kernels, and find a token budget that fits the device; `asked` tops it."""
        if not asked:
            found = find_budget(self._seconds_of, self.spec.max_tokens)
            self.budget = Budget(most=found, least=self.spec.max_tokens)
            torch.cuda.empty_cache()  # what the larger batches had
            log.info("token budget %s on %s", f"{found:,}", self.device)
        self.embed_tokens(full_rows(self.budget.most, self.spec.max_tokens, self.forward))

    def _seconds_of(self, tokens: int) -> float | None:
        """What the second of two full batches takes, on the device; None where it doesn't fit.

        Raises:
            ModelError: the encoder raises on them.
        """
        rows = full_rows(tokens, self.spec.max_tokens, self.forward)
        seconds = None
        for _ in range(2):
            found = self._attempt([_ids(rows, i) for i in range(len(rows.lengths))])
            if isinstance(found, Pending):
                _, seconds = found.result()
            elif out_of_memory(found):
                return None
            else:
                self._check_soundness()
                raise ModelError(
                    f"{self.spec.name} raises on rows of {self.spec.max_tokens} tokens"
                    f" ({one_line(found)}); lower max_tokens"
                )
        return seconds

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
            self._launch([empty.values]).result()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            raise ModelError(
                f"{self.spec.name} raises on every text, even the empty one ({one_line(error)});"
                " expected a model that works with these settings"
            ) from error


def full_rows(tokens: int, each: int, forward: Forward) -> Ragged:
    """As many rows of `each` tokens as a batch of `tokens` holds."""
    count = tokens // each
    ids = np.arange(count * each) % forward.vocabulary
    return Ragged(ids.astype(np.int32), np.arange(count + 1) * each, np.zeros(count, bool))


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
