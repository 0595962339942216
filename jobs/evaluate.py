"""How good an encoder is: C-MTEB by mteb's own protocol, with the model card's figures beside.

python jobs/evaluate.py --encoder.path MODEL --suite cmteb|mteb|TASK,… --output FOLDER [--data DIR]
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from stella_ray import settings
from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.errors import CorpusError, SettingsError
from stella_ray.evaluate.local_data import LocalTask, find_local
from stella_ray.evaluate.references import card_of
from stella_ray.evaluate.results import TaskResult
from stella_ray.evaluate.store import ResultStore
from stella_ray.evaluate.summary import means, table
from stella_ray.evaluate.tasks import CMTEB, PrefixRule, Task, find_tasks, prefixes_of
from stella_ray.pipeline.cluster import PoolSettings, cluster, size_pool
from stella_ray.pipeline.texts import Embedders
from stella_ray.storage import StorageSettings, write_json

log = logging.getLogger("stella_ray.evaluate")

SUITES = {
    "cmteb": list(CMTEB),
    "mteb": [name for name, task in CMTEB.items() if task.mteb_splits],
}

OFFLINE = "HF_HUB_OFFLINE"
"""Set, only what was fetched before comes from the hub, and asking it takes no time."""


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """How good an encoder is: C-MTEB by mteb's own protocol, with the model card's figures."""

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    suite: str = "cmteb"
    """cmteb: the 35 tasks of the model card; mteb: the 31 of them that are `MTEB(cmn, v1)`; or
    names of tasks with commas between them."""
    output: str
    """Folder of records, with a folder for each encoder; tasks that are there aren't done again."""
    data: str | None = None
    """Folder with a folder of files for each task (docs/evaluation.md). Default: all from the hub,
    where also a task that has no folder comes from."""
    hub: bool = True
    """Ask the hub for tasks that --data lacks."""
    prefixes: PrefixRule = "auto"
    """Tasks whose queries and passages have the encoder's prefixes. auto: retrieval, where they are
    piccolo's and stella's; retrieval and reranking with bge's and all others."""
    reference: str = "stella-base-zh"
    """Whose published figures stand beside: stella-, piccolo- or bge-…-zh, as on stella's card."""
    fresh: bool = False
    """Do tasks again that are done."""
    pool: PoolSettings = field(default_factory=PoolSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        self.names  # noqa: B018 - refuses what it refuses
        card_of(self.reference)

    @property
    def names(self) -> list[str]:
        """The tasks that are asked for."""
        if self.suite.lower() in SUITES:
            return SUITES[self.suite.lower()]
        names = [name.strip() for name in self.suite.split(",") if name.strip()]
        if not names:
            raise SettingsError(
                f"suite {self.suite!r} names nothing; expected {', '.join(SUITES)} or tasks"
            )
        return find_tasks(names)

    @property
    def named(self) -> bool:
        """Whether single tasks are asked for, which then must be there."""
        return self.suite.lower() not in SUITES


def run(job: EvaluateJob) -> dict[str, Any]:
    """Do what isn't done, and show it beside the card's figures.

    Raises:
        CorpusError: a task's files are wrong, or a task that was named can't be had.
    """
    settings.refuse_relative(output=job.output, data=job.data)
    require_mteb()
    job = dataclasses.replace(job, storage=job.storage.resolved())
    tasks = [CMTEB[name] for name in job.names]
    local = find_local(job.data, tasks, job.storage) if job.data else {}
    evaluation = Evaluation(job)
    for task in tasks:
        evaluation.look_up(task, local.get(task.name))
    if evaluation.todo:
        with evaluation.vectors() as embed:
            for task, one, revision in evaluation.todo:
                evaluation.execute(task, one, revision, embed)
    report = evaluation.report()
    write_json(f"{evaluation.store.folder}/report.json", report, job.storage)
    evaluation.show()
    return report


class Evaluation:
    """A run: what is done, what is to do, and what can't be had.

    Args:
        job: its settings.
    """

    def __init__(self, job: EvaluateJob) -> None:
        self.job = job
        self.spec = find_encoder(job.encoder)
        self.store = ResultStore(job.output, job.encoder, self.spec, job.storage)
        self.results: list[TaskResult] = []
        self.cached: list[str] = []
        self.todo: list[tuple[Task, LocalTask | None, str]] = []
        self.missing: dict[str, str] = {}
        self.no_hub = ""

    def protocol(self, task: Task) -> dict[str, Any]:
        """What a record depends on beside encoder and data."""
        import mteb

        prefixes = prefixes_of(task, self.job.prefixes, self.spec)
        return {"mteb": mteb.__version__, "split": task.split, "prefixes": prefixes}

    def look_up(self, task: Task, local: LocalTask | None) -> None:
        """Take a task's records, or put it down as to do."""
        from stella_ray.evaluate.cmteb import hub_revision

        if local is None and not self.job.hub:
            self._lacks(task, f"no folder for it in --data {self.job.data}, and --hub is false")
            return
        revision = hub_revision(task) if local is None else local.revision
        rankings = ("vectors", "bm25", "hybrid") if task.type == "Retrieval" else ("vectors",)
        there = [
            self.store.find(task.name, revision, self.protocol(task), ranking)
            for ranking in rankings
        ]
        done = [one for one in there if one is not None]
        if len(done) < len(rankings) or self.job.fresh:
            self.todo.append((task, local, revision))
            return
        self.results += done
        self.cached.append(task.name)
        log.info("%s: from cache", task.name)

    def execute(self, task: Task, local: LocalTask | None, revision: str, embed: Any) -> None:
        """Do a task and keep its records at once."""
        from stella_ray.evaluate.cmteb import HubError, evaluate_task, open_task

        if local is None and self.no_hub:
            self._lacks(task, f"no folder for it in --data, and {self.no_hub}")
            return
        try:
            opened = open_task(task, local)
        except HubError as error:
            # Asked for each of 35 tasks, a hub that isn't there takes a quarter of an hour.
            if isinstance(error.__cause__, ConnectionError) and not os.environ.get(OFFLINE):
                self.no_hub = f"the hub couldn't be reached for {task.name} before"
            self._lacks(task, str(error))
            return
        facts = {"data": "hub" if local is None else local.folder}
        prefixes = prefixes_of(task, self.job.prefixes, self.spec)
        identity = {"revision": revision, "fingerprint": self.store.fingerprint}
        for one in evaluate_task(task, opened, embed, prefixes, facts, **identity):
            self.store.keep(one, self.protocol(task))
            self.results.append(one)
            log.info("%s (%s): %s %.4f", one.task, one.ranking, one.metric, one.score)

    def _lacks(self, task: Task, why: str) -> None:
        if self.job.named:
            raise CorpusError(why if task.name in why else f"task {task.name}: {why}")
        self.missing[task.name] = why
        log.warning("%s: not available (%s)", task.name, why)

    @contextmanager
    def vectors(self) -> Iterator[Any]:
        """Texts to vectors by actors on the cluster."""
        with ExitStack() as stack:
            stack.enter_context(cluster())
            pool = size_pool(self.job.pool)
            log.info("%s", pool)
            embedders = Embedders(self.job.encoder, self.store.fingerprint, pool)
            yield stack.enter_context(embedders).embed

    def report(self) -> dict[str, Any]:
        """All of it as plain values."""
        card = card_of(self.job.reference)
        return {
            "encoder": self.spec.fingerprint,
            "settings": settings.shown(self.job),
            "reference": self.job.reference,
            "tasks": [
                {**one.to_json(), "units": None, "card": card.get(one.task)} for one in self.results
            ],
            "means": [dataclasses.asdict(one) for one in means(self.results, card)],
            "from_cache": self.cached,
            "not_available": self.missing,
        }

    def show(self) -> None:
        """Print the table, and what isn't in it."""
        job = self.job
        if self.results:
            print(table(self.results, card_of(job.reference), job.reference, self.cached))
        if self.missing:
            print(f"not available, {len(self.missing)} tasks: {', '.join(self.missing)}")
        print(f"report: {self.store.folder}/report.json")


def require_mteb() -> None:
    """Refuse to begin where mteb isn't installed.

    Raises:
        SettingsError: it isn't.
    """
    try:
        import mteb  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"evaluation needs mteb ({error}); install it: pip install 'stella-ray[evaluate]'"
        ) from None


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    job = settings.read_settings(EvaluateJob, about=(__doc__ or "").split("\n\n")[0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run(job)


if __name__ == "__main__":
    settings.run_job(main)
