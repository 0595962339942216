"""Dropout whose masks belong to the texts, not to the batches that they happen to stand in.

torch draws a mask from the state of a generator, so another token budget or another number of
workers drops other numbers, and no gradient equals another run's. Here what a text drops is a hash
of the text's key, the layer, the token's place and the feature: a second forward pass repeats it,
and so does any way to batch the same texts.

Legend: B rows, T tokens of a row (packed: B is 1 and T counts all rows' tokens), D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stella_ray.learn.shuffle import hashes, key_of

_FIRST_FACTOR, _SECOND_FACTOR = 0x7FEB352D, 0x846CA68B - (1 << 32)
"""Odd multipliers of a 32-bit finaliser; the second one as a signed number."""


class TokenKeys:
    """What the layers of one model share: a hash for each token of the batch at hand."""

    def __init__(self) -> None:
        self.now: Tensor | None = None

    def set(
        self,
        lengths: Sequence[int],
        row_keys: np.ndarray,
        device: torch.device,
        *,
        packed: bool,
    ) -> None:
        """Say which rows the next forward pass takes, and its backward pass after it.

        Args:
            lengths: tokens of each row.
            row_keys: a number for each row, uint64 [rows]; equal ones drop the same.
            device: of the model.
            packed: rows back to back instead of padded to the longest.
        """
        places_BT = np.arange(max(lengths), dtype=np.uint64)[None]
        keys_BT = hashes(places_BT ^ hashes(row_keys, 0)[:, None], 1)
        if packed:
            keys_BT = np.concatenate(
                [keys[:length] for keys, length in zip(keys_BT, lengths, strict=True)]
            )[None]
        self.now = torch.from_numpy(keys_BT.astype(np.uint32).view(np.int32)).to(device)


class KeyedDropout(torch.nn.Module):
    """Dropout by `TokenKeys`, for activations [B, T, D].

    Args:
        p: the share that is dropped.
        site: the layer's name; each drops for itself.
        keys: of the tokens.
    """

    def __init__(self, p: float, site: str, keys: TokenKeys) -> None:
        super().__init__()
        self.p, self.site, self.keys = p, site, keys
        self._features: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Drop, and scale what stays by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return x_BTD
        keys_BT = self.keys.now
        if keys_BT is None or keys_BT.shape != x_BTD.shape[:2]:
            raise RuntimeError("the rows weren't told to TokenKeys; this is a bug")
        if self._features is None or len(self._features) != x_BTD.shape[-1]:
            features = hashes(np.arange(x_BTD.shape[-1]), key_of(self.site))
            self._features = torch.from_numpy(features.astype(np.uint32).view(np.int32))
            self._features = self._features.to(x_BTD.device)
        bits_BTD = keys_BT[:, :, None] + self._features
        # Shifts of signed numbers bring ones along from the left, so they are masked away.
        bits_BTD.bitwise_xor_((bits_BTD >> 16).bitwise_and_(0xFFFF)).mul_(_FIRST_FACTOR)
        bits_BTD.bitwise_xor_((bits_BTD >> 15).bitwise_and_(0x1FFFF)).mul_(_SECOND_FACTOR)
        dropped_BTD = bits_BTD < int(self.p * 2**32) - 2**31
        return (x_BTD * (1 / (1 - self.p))).masked_fill(dropped_BTD, 0)


def use_keyed_dropout(model: torch.nn.Module, p: float | None) -> TokenKeys:
    """Put keyed dropout in the place of torch's; attention's own weights drop nothing any more.

    The fast attention kernels either can't drop weights or draw them from a generator.

    Args:
        model: one of `attention.PACKABLE`.
        p: the share that is dropped; None: as the model's config says.

    Returns:
        What to tell the rows to before each forward pass.
    """
    keys = TokenKeys()
    places = [
        (name, one) for name, one in model.named_modules() if isinstance(one, torch.nn.Dropout)
    ]
    for name, old in places:
        if name.endswith("attention.self.dropout"):
            old.p = 0.0
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        share = old.p if p is None else p
        setattr(parent, name.rpartition(".")[2], KeyedDropout(share, name, keys))
    return keys
