"""Text to unit vectors: the one inference path of embedding, training and evaluation."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from torch import Tensor

from stella_ray.encode import attention
from stella_ray.encode.batching import batches
from stella_ray.encode.models import EncoderSettings, EncoderSpec, find_encoder
from stella_ray.encode.tokens import Ragged, TextTokenizer
from stella_ray.errors import ModelError, SettingsError

log = logging.getLogger(__name__)

CPU_TOKEN_BUDGET, CUDA_TOKEN_BUDGET = 2_048, 65_536
ROWS_PER_WINDOW = 4_096
"""Texts that `embed` orders by length together: 3% padding, where 128 leave 12%."""

CALM_BATCHES = 64
"""Batches without running out of memory after which a halved budget grows by a tenth."""


@dataclass
class Embedded:
    """What a window of rows gave.

    Attributes:
        vectors: unit vectors in the order of the rows, float32 [rows, dim].
        padded_tokens: tokens the device worked on for each row, padding included; 0 for a row whose
            text stood in the window before, int32 [rows].
        seconds: time of each row's share of its batch, float32 [rows].
    """

    vectors: np.ndarray
    padded_tokens: np.ndarray
    seconds: np.ndarray


@dataclass
class Budget:
    """The token budget now: halved when the device runs out of memory, recovering slowly."""

    most: int
    least: int
    now: int = 0
    splits: int = 0
    calm: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self.now = self.most

    def halve(self) -> bool:
        """Lower it after an out-of-memory; False when not even one row fits."""
        if self.now <= self.least:
            return False
        self.now, self.calm, self.splits = max(self.least, self.now // 2), 0, self.splits + 1
        return True

    def went_well(self) -> None:
        """Count a batch that fitted."""
        self.calm += 1
        if self.calm >= CALM_BATCHES and self.now < self.most:
            self.now, self.calm = min(self.most, self.now + max(1, self.now // 10)), 0


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
        self.device = _device(settings.device)
        self.dtype = _dtype(settings.dtype, self.device)
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
        self.model = _load_model(self.spec, self.dtype, packed=self.packed).to(self.device)

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
        """
        if isinstance(texts, str):
            raise SettingsError(
                "embed() takes a list of texts; found a single string, put it in a list"
            )
        out = np.empty((len(texts), self.dim), np.float32)
        first = self.spec.prefix_text(prefix)
        for start in range(0, len(texts), ROWS_PER_WINDOW):
            window = texts[start : start + ROWS_PER_WINDOW]
            out[start : start + len(window)] = self.embed_tokens(
                self.tokenizer(window, first)
            ).vectors
        return out

    def embed_tokens(self, rows: Ragged) -> Embedded:
        """Embed one window of tokenised rows; rows of equal ids are encoded once.

        1. Find the distinct rows. 2. Cut them into batches, longest first. 3. Run each, with a
        smaller budget where the device runs out of memory. 4. Put the vectors back in order.
        """
        first, same_as = _distinct(rows)
        lengths = rows.lengths[first]
        vectors = np.empty((len(first), self.dim), np.float32)
        padded = np.zeros(len(rows.lengths), np.int32)
        seconds = np.zeros(len(rows.lengths), np.float32)
        todo = np.arange(len(first))
        while len(todo):
            cut = batches(lengths[todo], self.budget.now, packed=self.packed)
            done: list[np.ndarray] = []
            for batch in cut:
                members = todo[batch]
                began = time.perf_counter()
                try:
                    vectors[members] = self._forward([_ids(rows, first[i]) for i in members])
                except torch.OutOfMemoryError:
                    if not self.budget.halve():
                        raise ModelError(
                            f"out of device memory with {len(members)} row(s) of up to"
                            f" {lengths[members].max()} tokens; lower max_tokens or use a larger"
                            " device"
                        ) from None
                    torch.cuda.empty_cache()
                    log.warning("out of device memory: token budget is now %s", self.budget.now)
                    break
                width = lengths[members] if self.packed else lengths[members].max()
                padded[first[members]] = width
                seconds[first[members]] = (time.perf_counter() - began) / len(members)
                self.budget.went_well()
                done.append(members)
            if done:
                todo = np.setdiff1d(todo, np.concatenate(done), assume_unique=True)
        return Embedded(vectors[same_as], padded, seconds)

    @torch.inference_mode()
    def _forward(self, rows: list[np.ndarray]) -> np.ndarray:
        """One batch of token ids to unit vectors, float32 [rows, dim]; longest row first."""
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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(
            f"device {name!r} isn't one of torch's; expected auto, cpu or cuda"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device {name}: no CUDA device here; expected cpu or auto")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _load_model(
    spec: EncoderSpec, dtype: torch.dtype, *, packed: bool
) -> transformers.PreTrainedModel:
    attention.register()
    bert = {"add_pooling_layer": False} if spec.model_type in attention.PACKABLE else {}
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # a pooler that isn't loaded is no news
    try:
        model, loaded = transformers.AutoModel.from_pretrained(
            spec.folder,
            dtype=dtype,
            attn_implementation=attention.PACKED if packed else "sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **bert,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{spec.folder}: the weights can't be loaded ({reason})") from None
    except Exception as error:
        # safetensors' own error type derives from Exception alone
        if type(error).__name__ != "SafetensorError":
            raise
        raise ModelError(f"{spec.folder}: damaged safetensors file ({error})") from None
    # transformers fills what isn't in the file with random numbers
    if missing := sorted(name for name in loaded["missing_keys"] if "pooler" not in name):
        raise ModelError(
            f"{spec.folder}: {len(missing)} of the model's weights aren't in its .safetensors files"
            f" ({missing[0]}, …); expected all that config.json describes"
        )
    return model.eval()
