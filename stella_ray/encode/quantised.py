"""int8 on a CPU: matrix products of 8-bit numbers, by oneDNN as torch brings it.

Weights have a scale for each output, activations a scale and a zero for each token, found as they
come: nothing is calibrated, and a row's vector doesn't depend on its neighbours in the batch.
Attention, GELU, layer norms and sums (layers.py) stay in float32.  One scale for a whole batch
would be simpler, and keeps a cosine of 0.994 to float32 where this keeps 0.9995
(benchmarks/LOG.md).

Legend: T tokens, D inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stella_ray.errors import SettingsError


def check_int8(device: torch.device) -> None:
    """Refuse int8 where it would be slow or wrong.

    Raises:
        SettingsError: not a CPU, a CPU without VNNI (older instructions overflow 16-bit sums of
            such products), or a torch without oneDNN.
    """
    if device.type != "cpu":
        raise SettingsError(
            f"dtype int8 is for a CPU; found device {device}: use bfloat16, or --encoder.device cpu"
        )
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_prepack")):
        raise SettingsError("dtype int8 needs a torch built with oneDNN; use --encoder.dtype auto")
    if not torch.cpu._is_vnni_supported():
        raise SettingsError(
            "dtype int8 needs a CPU with AVX512 VNNI, which this one lacks;"
            " use --encoder.dtype auto"
        )


class Int8Linear:
    """y = x W' + b with x and W in 8 bits, sums in 32."""

    def __init__(self, *layers: torch.nn.Linear) -> None:
        """Layers of the same input become one, their outputs side by side."""
        weight_ND = torch.cat([layer.weight for layer in layers]).float()
        self.bias_N = torch.cat([layer.bias for layer in layers]).float()
        self.scale_N = weight_ND.abs().amax(1).clamp_(min=1e-12) / 127
        rounded_ND = (weight_ND / self.scale_N[:, None]).round_().to(torch.int8)
        self.sum_N = rounded_ND.sum(1) * self.scale_N
        self.zero_N = torch.zeros(len(rounded_ND), dtype=torch.int64)
        usual = [1_024, weight_ND.shape[1]]
        self.packed = torch.ops.onednn.qlinear_prepack(rounded_ND, usual)

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Float32 [T, N].

        1. Bytes u of each token between its least and its greatest number: x = least + step u.
        2. u W' in integers, times W's scales. 3. x W' = step (u W') + least (sum of W's columns).
        """
        least_T1 = x_TD.amin(1, keepdim=True)
        step_T1 = (x_TD.amax(1, keepdim=True) - least_T1).div_(255).clamp_(min=1e-12)
        # Cutting off a number half a step up rounds it.
        bytes_TD = (x_TD * (1 / step_T1)).add_(0.5 - least_T1 / step_T1).to(torch.uint8)
        y_TN: Tensor = torch.ops.onednn.qlinear_pointwise(
            bytes_TD, 1.0, 0, self.packed, self.scale_N, self.zero_N, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        torch.addcmul(self.bias_N, y_TN, step_T1, out=y_TN)
        return y_TN.addcmul_(least_T1, self.sum_N)
