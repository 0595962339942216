"""Builds the Hugging Face tokenizer of an E5 model file."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers import processors as post

from stella_ray.encode.e5_file import E5File, Vocabulary
from stella_ray.errors import ModelError

MASK: Final = "<mask>"
METASPACE: Final = "\u2581"


def build_tokenizer(file: E5File) -> Tokenizer:
    """The tokenizer that turns text A into `<s> A </s>` and pads with the file's pad piece."""
    vocabulary = file.vocabulary
    pieces = vocabulary.pieces
    tokens = special_tokens(vocabulary)
    bos, eos = tokens["bos_token"], tokens["eos_token"]
    # float(str()) gives the shortest decimal of a float32: -9.43, not -9.430000305175781.
    scored = [
        (piece, float(str(score))) for piece, score in zip(pieces, vocabulary.scores, strict=True)
    ]
    tokenizer = Tokenizer(models.Unigram(scored, vocabulary.unk, byte_fallback=False))
    tokenizer.normalizer = _normalizer(file.normaliser)
    tokenizer.pre_tokenizer = pre.Metaspace(replacement=METASPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=METASPACE, prepend_scheme="always")
    tokenizer.post_processor = post.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(bos, vocabulary.bos), (eos, vocabulary.eos)],
    )
    added = [
        AddedToken(token, special=True, normalized=False)
        for token in (bos, tokens["pad_token"], eos, tokens["unk_token"])
    ]
    if MASK in pieces:
        added.append(AddedToken(MASK, special=True, normalized=False, lstrip=True))
    tokenizer.add_special_tokens(added)
    if tokenizer.get_vocab_size() != len(pieces):
        raise ModelError("damaged vocabulary: it holds a piece twice")
    return tokenizer


def special_tokens(vocabulary: Vocabulary) -> dict[str, str]:
    """The special pieces under the names tokenizer_config.json gives them."""
    bos, eos = vocabulary.pieces[vocabulary.bos], vocabulary.pieces[vocabulary.eos]
    tokens = {
        "bos_token": bos,
        "cls_token": bos,
        "eos_token": eos,
        "sep_token": eos,
        "pad_token": vocabulary.pieces[vocabulary.pad],
        "unk_token": vocabulary.pieces[vocabulary.unk],
    }
    if MASK in vocabulary.pieces:
        tokens["mask_token"] = MASK
    return tokens


def charsmap(replacements: dict[str, str]) -> bytes:
    """A sentencepiece precompiled_charsmap: a double-array trie over UTF-8, then the replacements.

    The trie is u32 units as darts-clone lays them out: bits 0-7 the label, bit 8 "a value hangs
    here", bits 10-30 the offset (its own position XOR its children's base); a value unit has bit
    31 set and lies at the base itself.  A value is where its NUL-ended replacement begins.
    """
    text = bytearray()
    starts: dict[str, int] = {}
    root = _Branch()
    for key, replacement in replacements.items():
        if replacement not in starts:
            starts[replacement] = len(text)
            text += replacement.encode("utf-8") + b"\0"
        branch = root
        for byte in key.encode("utf-8"):
            branch = branch.below.setdefault(byte, _Branch())
        branch.value = starts[replacement]
    units = _DoubleArray(root).units
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + bytes(text)


def _normalizer(replacements: dict[str, str]) -> normalizers.Normalizer:
    normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(charsmap(replacements)),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    for old, new in replacements.items():
        got = normalizer.normalize_str(old)
        if got != new:
            raise ModelError(f"damaged normaliser: it turns {old!r} into {got!r}, not {new!r}")
    return normalizer


@dataclass
class _Branch:
    below: dict[int, _Branch] = field(default_factory=dict)
    value: int | None = None


class _DoubleArray:
    """The units of a trie, each branch put at the lowest place its labels fit."""

    def __init__(self, root: _Branch) -> None:
        self.units = [0] * 256
        self._taken = bytearray(256)
        self._taken[0] = 1
        self._bases = {0}
        self._lowest_free = 1
        todo = [(0, root)]
        for position, branch in todo:  # grows while it is walked
            todo += self._place(position, branch)

    def _place(self, position: int, branch: _Branch) -> list[tuple[int, _Branch]]:
        has_value = branch.value is not None
        # Label 0 is the value's: no byte of a key is 0.
        labels = [0] * has_value + sorted(branch.below)
        base = self._free_base(labels)
        if position ^ base >= 1 << 21:
            raise ModelError("damaged normaliser: too large for its trie")
        self.units[position] |= (position ^ base) << 10 | has_value << 8
        if branch.value is not None:
            self.units[base] = branch.value | 1 << 31
        for label in branch.below:
            self.units[base ^ label] = label
        return [(base ^ label, branch.below[label]) for label in sorted(branch.below)]

    def _free_base(self, labels: list[int]) -> int:
        while self._lowest_free < len(self._taken) and self._taken[self._lowest_free]:
            self._lowest_free += 1
        slot = self._lowest_free
        while True:
            while slot >= len(self._taken):
                self.units += [0] * 256
                self._taken += bytes(256)
            base = slot ^ labels[0]
            # A base is its parent's alone: the search checks labels, not parents.
            if base not in self._bases and not any(self._taken[base ^ label] for label in labels):
                break
            slot += 1
        self._bases.add(base)
        for label in labels:
            self._taken[base ^ label] = 1
        return base
