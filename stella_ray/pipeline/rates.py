"""How many tokens a second an encoder will do: as told, as in the last run, or by its FLOPs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stella_ray.encode.models import EncoderSpec
from stella_ray.errors import SettingsError
from stella_ray.learn.folders import read_json as read_file
from stella_ray.pipeline.cluster import Pool
from stella_ray.pipeline.earlier import earlier_reports
from stella_ray.pipeline.estimate import Estimate, EstimateSettings, Rate
from stella_ray.pipeline.report import RunReport
from stella_ray.storage import StorageSettings

DENSE_FLOPS = {
    "h100": 989e12,
    "h200": 989e12,
    "a100": 312e12,
    "l40s": 362e12,
    "l4": 121e12,
    "a10g": 70e12,
    "v100": 125e12,
    "t4": 65e12,
}
"""Of dense 16-bit matrix products a second, by NVIDIA's data sheets (SXM, where there is one)."""

REACHED = 0.45
"""Share of that which a run is taken to reach. Measured was the forward pass alone on one H100: 50%
for stella-base's shape, 56% for stella-large's (benchmarks/LOG.md); other kinds weren't."""

REPORTS = 20
"""Runs to look back for one with the same encoders."""


def rate_for(
    asked: EstimateSettings,
    spec: EncoderSpec,
    pool: Pool,
    found: Estimate,
    uri: str,
    storage: StorageSettings = StorageSettings(),
) -> Rate | None:
    """The rate that an estimate reckons with: as told, by the kind of GPU, or of the last run.

    Raises:
        SettingsError: an unknown kind of GPU.
    """
    encoders = asked.encoders or pool.encoders
    if asked.tokens_per_second:
        return told_rate(asked.tokens_per_second, encoders)
    if asked.gpu is not None:
        embedded = max(1, found.new + found.changed)
        return by_gpu(asked.gpu, encoders, spec, found.tokens / embedded)
    return of_last_run(uri, spec.fingerprint["digest"], str(pool), storage)


def told_rate(tokens_per_second: float, encoders: int) -> Rate:
    """As the settings say."""
    told = f"{encoders} at {tokens_per_second:,.0f} tokens/s each, as told"
    return Rate(tokens_per_second, encoders, told)


def by_gpu(kind: str, encoders: int, spec: EncoderSpec, tokens_each: float) -> Rate:
    """By the encoder's FLOPs and the kind of GPU.

    Raises:
        SettingsError: an unknown kind.
    """
    if kind not in DENSE_FLOPS:
        raise SettingsError(
            f"estimate.gpu {kind!r} isn't known; expected one of {', '.join(DENSE_FLOPS)}, or give"
            " --estimate.tokens_per_second"
        )
    rate = (
        REACHED
        * DENSE_FLOPS[kind]
        / flops_per_token(read_file(Path(spec.folder) / "config.json"), tokens_each)
    )
    return Rate(
        rate,
        encoders,
        f"{encoders} {kind} at {rate:,.0f} tokens/s each, if they reach {REACHED:.0%} of the data"
        " sheet",
    )


def kind_of_gpu(name: str) -> str | None:
    """The kind in `DENSE_FLOPS` that a device's name says: h100 for `NVIDIA H100 80GB HBM3`."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((kind for kind in DENSE_FLOPS if kind in words), None)


def flops_per_token(config: dict[str, Any], tokens: float) -> float:
    """Of a forward pass through an encoder of BERT's kind, for texts of `tokens` tokens.

    Two for each weight of the layers' matrices (4 h² of attention, 2 h f of the feed-forward), and
    4 h for each token that a token looks at.
    """
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    inner = config.get("intermediate_size", 4 * hidden)
    return float(layers * (2 * (4 * hidden**2 + 2 * hidden * inner) + 4 * hidden * tokens))


def of_last_run(
    uri: str, digest: str, pool: str, storage: StorageSettings = StorageSettings()
) -> Rate | None:
    """By the newest run of this table that encoded something with the same encoder and pool."""
    for found in earlier_reports(uri, REPORTS, storage):
        same = found.get("encoder", {}).get("digest") == digest and found.get("pool") == pool
        if same and found.get("tokens_per_second"):
            encoders = int(found.get("encoders", 1))
            rate = float(found["tokens_per_second"]) / encoders
            return Rate(rate, encoders, f"{rate:,.0f} tokens/s as in run {found['run_id']}")
    return None


def costs_of(report: RunReport, asked: EstimateSettings, spec: EncoderSpec) -> dict[str, Any]:
    """What a run took and cost, and what `asked` would have had it take for as many tokens.

    Returns:
        encoder_hours, price_per_hour and cost (None where there is no price) and, where asked for a
        GPU or a rate, an estimate's own `expected` hours and cost and `rate`.

    Raises:
        SettingsError: an unknown kind of GPU.
    """
    price = asked.price_per_hour
    hours = report.encoders * report.seconds.get("total", 0.0) / 3600
    costs = {
        "encoder_hours": round(hours, 4),
        "price_per_hour": price,
        "cost": None if price is None else round(hours * price, 4),
    }
    encoders = asked.encoders or report.encoders
    if not report.tokens or not (asked.tokens_per_second or asked.gpu):
        return costs
    if asked.tokens_per_second:
        rate = told_rate(asked.tokens_per_second, encoders)
    else:
        each = report.tokens / max(1, report.embedded)
        rate = by_gpu(str(asked.gpu), encoders, spec, each)
    expected = Estimate(0, 0, 1.0, tokens=report.tokens)
    expected.at(rate, asked)
    return {
        **costs,
        "expected": {
            "encoder_hours": round(expected.encoder_hours or 0.0, 4),
            "cost": expected.cost,
            "rate": expected.rate,
        },
    }
