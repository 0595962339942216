"""A training run at rest: a model folder that any job can name, and what AdamW remembers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from stella_ray.errors import SettingsError
from stella_ray.learn.folders import read_json, read_tensors, write_json, write_tensors
from stella_ray.learn.learner import Learner, StepReport


def write_checkpoint(learner: Learner, folder: Path, reports: Sequence[StepReport]) -> None:
    """Write a checkpoint into an empty folder.

    Its model stands in `model`; weights are float32, so that a run goes on bit for bit.

    Args:
        learner: after its last step.
        folder: where.
        reports: of all steps of the run, in order.
    """
    learner.trainee.save(folder / "model")
    write_tensors(folder / "optimizer.safetensors", learner.means(), {"format": "pt"})
    lines = (json.dumps(dataclasses.asdict(one), ensure_ascii=False) for one in reports)
    (folder / "steps.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    write_json(folder / "run.json", {"steps": len(reports), "digest": learner.digest()})


def read_checkpoint(learner: Learner, folder: Path) -> list[StepReport]:
    """Bring a learner to where a checkpoint was written; returns the reports of the steps so far.

    Raises:
        SettingsError: another run's: its settings or data differ.
    """
    told = read_json(folder / "run.json")
    if told["digest"] != learner.digest():
        raise SettingsError(
            f"the checkpoint after step {told['steps']} is of other data, another base model or"
            " other settings of data, optimizer, anchor or seed; expected those it was begun with."
            " Give them again, or begin another run (--run)"
        )
    learner.trainee.load_weights(folder / "model")
    if told["steps"]:
        learner.load_means(read_tensors(folder / "optimizer.safetensors")[0], told["steps"])
    return read_reports(folder)


def read_reports(folder: Path) -> list[StepReport]:
    """The reports of a checkpoint's steps."""
    text = (folder / "steps.jsonl").read_text(encoding="utf-8")
    return [StepReport(**json.loads(line)) for line in text.splitlines()]
