"""What of the cluster training workers get, and what they leave for held-out evaluation."""

from __future__ import annotations

import dataclasses

import ray

from stella_ray.errors import SettingsError
from stella_ray.learn.recipe import WorkerSettings
from stella_ray.pipeline.cluster import PoolSettings


def scaling_of(workers: WorkerSettings, *, evaluates: bool) -> tuple[ray.train.ScalingConfig, int]:
    """Workers and the share of the cluster that each gets; and torch's threads in each."""
    from ray.train import ScalingConfig

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    per_gpu = workers.gpus_per_worker or (1.0 if gpus else 0.0)
    count = workers.workers or max(1, int(gpus / per_gpu) if per_gpu else 1)
    if per_gpu * count > gpus:
        raise SettingsError(
            f"{count} workers with {per_gpu:g} GPU each need {per_gpu * count:g} GPUs, the cluster"
            f" has {gpus:g}; lower --workers or --gpus_per_worker"
        )
    free = max(cpus - 1, cpus / 2) if evaluates else cpus
    each = workers.cpus_per_worker or (1.0 if per_gpu else free / count)
    if each * count > cpus:
        raise SettingsError(
            f"{count} workers with {each:g} CPUs each need {each * count:g} CPUs, the cluster has"
            f" {cpus:g}; lower --workers or --cpus_per_worker"
        )
    share = {"CPU": each, **({"GPU": per_gpu} if per_gpu else {})}
    scaling = ScalingConfig(num_workers=count, use_gpu=bool(per_gpu), resources_per_worker=share)
    return scaling, workers.threads or max(1, round(cpus / count) if not per_gpu else 1)


def pool_beside(pool: PoolSettings, scaling: ray.train.ScalingConfig) -> PoolSettings:
    """Embedding actors in what the workers leave over: one, on CPUs where no GPU is free."""
    gpus = ray.cluster_resources().get("GPU", 0.0)
    share = scaling.resources_per_worker or {}
    left = gpus - scaling.num_workers * share.get("GPU", 0.0)
    if pool.encoders or pool.gpus_per_encoder or left >= 1 or not gpus:
        cpus = pool.cpus_per_encoder or 0.5
        return dataclasses.replace(pool, encoders=pool.encoders or 1, cpus_per_encoder=cpus)
    raise SettingsError(
        f"held-out evaluation has no GPU: the workers take all {gpus:g}; give"
        " --gpus_per_worker 0.75 --gpus_per_encoder 0.25 to share, or fewer --workers"
    )
