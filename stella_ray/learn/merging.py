"""Two model folders into one between them (WiSE-FT, arXiv 2109.01903; LM-Cocktail)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from stella_ray.encode.models import EncoderSpec
from stella_ray.errors import ModelError, SettingsError
from stella_ray.learn.extend import POSITIONS, first_position, trained_positions
from stella_ray.learn.folders import (
    copy_folder,
    new_folder,
    read_tensors,
    write_json,
    write_tensors,
)
from stella_ray.learn.positions import extend_positions


def merge_models(
    base: EncoderSpec, tuned: EncoderSpec, out: str, weight: float, alpha: float = 0.2
) -> Path:
    """Write (1 - weight) x base + weight x tuned to the folder `out`; all else is the tuned one's.

    Computed in float32, stored in the tuned model's numbers. A base with fewer positions is
    extended first, as the tuned one was.

    Args:
        base: where the tuned model came from.
        tuned: the tuned model.
        out: a folder that isn't there, or is empty.
        weight: of the tuned model, 0 to 1.
        alpha: of the extension; see `positions.extend_positions`.

    Raises:
        SettingsError: weight or alpha can't hold, or `out` is taken.
        ModelError: the two aren't of one architecture, or `out` can't be written.
    """
    if not 0 <= weight <= 1:
        raise SettingsError(f"weight {weight} isn't between 0 and 1, the base and the tuned model")
    if base.pooling != tuned.pooling:
        raise ModelError(
            f"{base.name} pools by {base.pooling}, {tuned.name} by {tuned.pooling}; expected one"
        )
    start: dict[str, Tensor] = {}
    for path in sorted(Path(base.folder).glob("*.safetensors")):
        start |= read_tensors(path)[0]
    with new_folder(out) as made:
        copy_folder(Path(tuned.folder), made)
        for path in sorted(made.glob("*.safetensors")):
            tensors, metadata = read_tensors(path)
            for name, end in tensors.items():
                if end.is_floating_point():
                    old = _counterpart(name, start, base, tuned, alpha)
                    if old.shape != end.shape:
                        raise ModelError(
                            f"{name} is {list(old.shape)} in {base.name} and {list(end.shape)} in"
                            f" {tuned.name}; expected two models of one architecture"
                        )
                    tensors[name] = torch.lerp(old.float(), end.float(), weight).to(end.dtype)
            write_tensors(path, tensors, metadata)
        told = {"base": base.fingerprint["weights"], "tuned": tuned.fingerprint["weights"]}
        write_json(made / "merge.json", {**told, "weight_of_tuned": weight})
    return Path(out).expanduser().absolute()


def _counterpart(
    name: str, start: dict[str, Tensor], base: EncoderSpec, tuned: EncoderSpec, alpha: float
) -> Tensor:
    """The base model's tensor of this name, with as many positions as the tuned model's."""
    if name not in start:
        raise ModelError(
            f"{tuned.name} has a tensor {name}, {base.name} has none; expected two models of one"
            " architecture"
        )
    old = start[name]
    if not name.endswith(POSITIONS) or trained_positions(base) == trained_positions(tuned):
        return old
    first = first_position(base)
    longer = extend_positions(old[first:].float(), trained_positions(tuned), alpha)
    return torch.cat([old[:first].float(), longer])
