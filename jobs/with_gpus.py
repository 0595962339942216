"""Bring up an autoscaling cluster's GPUs, spot first and on demand where there is none, then run.

python jobs/with_gpus.py --gpus 4 -- python jobs/embed.py --corpus CORPUS --table TABLE

A job sizes its pool when it starts, so the GPUs must be there by then; where they are, nothing is
waited for. The command takes this process's place, and with it its signals and its exit code.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

import ray
from ray.util import placement_group, remove_placement_group

from stella_ray import settings
from stella_ray.errors import SettingsError
from stella_ray.pipeline.cluster import cluster


@dataclass(frozen=True, kw_only=True)
class GpusJob:
    """Bring up GPUs, then run the command behind `--`."""

    gpus: int
    """GPUs to bring up before the command starts."""
    least_gpus: int = 0
    """GPUs with which it starts all the same when the waiting is over; 0: all of them. `embed.py`
    without --pool.encoders takes what is there, and what comes later."""
    spot_minutes: float = 10.0
    """Minutes to wait for nodes of any kind, which the cluster's priorities make spot ones."""
    on_demand_minutes: float = 20.0
    """Minutes to wait after that for nodes with the resource `on_demand`."""
    on_demand: str = "on_demand"
    """The resource that nodes on demand have, one each, and no others."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        if self.gpus < 1:
            raise SettingsError(f"gpus {self.gpus} is too few; expected 1 or more")
        if not 0 <= self.least_gpus <= self.gpus:
            raise SettingsError(
                f"least_gpus {self.least_gpus} doesn't fit --gpus {self.gpus}; expected 0 (all) to"
                f" {self.gpus}"
            )
        for name in ("spot_minutes", "on_demand_minutes"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} {getattr(self, name):g} is negative")


def bundles(gpus: int, there: int, on_demand: str | None) -> list[dict[str, float]]:
    """One bundle a GPU; what isn't there yet on nodes with `on_demand`, where it is given."""
    missing = 0 if on_demand is None else max(0, gpus - there)
    # The share of the resource is as small as a bundle may have: all GPUs of a node fit on it.
    named = {"GPU": 1.0, on_demand: 0.001} if on_demand else {}
    return [{"GPU": 1.0} for _ in range(gpus - missing)] + [dict(named) for _ in range(missing)]


def bring_up(job: GpusJob) -> None:
    """Wait until the GPUs are there, or as many as will do.

    A placement group asks for them, since it goes with this driver however that ends; what
    `request_resources` asks for would stay asked for, and paid for.

    Raises:
        SettingsError: they didn't come.
    """
    began = time.monotonic()
    for minutes, on_demand in (
        (job.spot_minutes, None),
        (job.on_demand_minutes, job.on_demand),
    ):
        there = int(ray.cluster_resources().get("GPU", 0))
        group = placement_group(bundles(job.gpus, there, on_demand))
        came = group.wait(timeout_seconds=minutes * 60)
        remove_placement_group(group)
        if came:
            print(f"{job.gpus} GPUs after {time.monotonic() - began:,.0f} s", flush=True)
            return
        kind = "on demand" if on_demand else "of any kind"
        print(f"not {job.gpus} GPUs {kind} within {minutes:g} minutes", flush=True)
    there = int(ray.cluster_resources().get("GPU", 0))
    if there >= (job.least_gpus or job.gpus):
        print(f"going on with {there} of {job.gpus} GPUs", flush=True)
        return
    raise SettingsError(
        f"{job.gpus} GPUs were asked for and the cluster has {there}, free or busy; see"
        " `ray status`, or lower --gpus (and the command's --pool.encoders)"
    )


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    words = sys.argv[1:]
    if "--" not in words and not {"-h", "--help"} & set(words):
        raise SettingsError("no command; expected --gpus N -- python jobs/embed.py …")
    cut = words.index("--") if "--" in words else len(words)
    about = (__doc__ or "").split("\n\n")[0]
    job = settings.read_settings(GpusJob, words[:cut], about=about)
    if not (command := words[cut + 1 :]):
        raise SettingsError("no command behind --")
    with cluster():
        bring_up(job)
    sys.stdout.flush()
    os.execvp(command[0], command)


if __name__ == "__main__":
    settings.run_job(main)
