"""One encoder's run through tasks and long sets: what is done, to do, and not to be had.

mteb is imported with the first task that needs it, when the encoders are on their way already: it
takes five seconds, and long sets need none of it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

from stella_ray.encode.models import EncoderSettings, find_encoder
from stella_ray.errors import CorpusError
from stella_ray.evaluate.local_data import LocalTask
from stella_ray.evaluate.longtext import Embed, evaluate_long, revision_of
from stella_ray.evaluate.questions import LONG_TEXT, LongSet
from stella_ray.evaluate.results import TaskResult
from stella_ray.evaluate.store import ResultStore
from stella_ray.evaluate.summary import means
from stella_ray.evaluate.tasks import PrefixRule, Task, prefixes_of
from stella_ray.storage import StorageSettings

log = logging.getLogger("stella_ray.evaluate")

OFFLINE = "HF_HUB_OFFLINE"
"""Set, only what was fetched before comes from the hub, and asking it takes no time."""

RANKINGS = ("vectors", "bm25", "hybrid")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to evaluate on, the same for each encoder.

    Attributes:
        tasks: of C-MTEB.
        local: those that have files.
        long_sets: long sets.
        output: the folder of records.
        prefixes: which tasks have them.
        pool: each long set's own documents, or those of all of them.
        hub: whether to ask it for tasks without files.
        must: whether a task that can't be had ends the run.
        fresh: do again what is done.
        storage: where S3 is.
    """

    tasks: Sequence[Task] = ()
    local: Mapping[str, LocalTask] = field(default_factory=dict)
    long_sets: Sequence[LongSet] = ()
    output: str
    prefixes: PrefixRule = "auto"
    pool: Literal["each", "all"] = "each"
    hub: bool = True
    must: bool = False
    fresh: bool = False
    storage: StorageSettings = StorageSettings()


class Evaluation:
    """One encoder's run.

    Args:
        encoder: which.
        plan: on what.
    """

    def __init__(self, encoder: EncoderSettings, plan: Plan) -> None:
        self.encoder = encoder
        self.plan = plan
        self.spec = find_encoder(encoder)
        self.store = ResultStore(plan.output, encoder, self.spec, plan.storage)
        self.results: list[TaskResult] = []
        self.cached: list[str] = []
        self.missing: dict[str, str] = {}
        self._tasks: list[Task] = []
        self._long: list[LongSet] = []
        self._no_hub = ""

    @property
    def done(self) -> bool:
        """Whether nothing needs the encoder."""
        return not self._tasks and not self._long

    def look_up(self) -> None:
        """Take the records that there are, and put the others down as to do.

        Raises:
            CorpusError: a task that must be had can't be.
        """
        for task in self.plan.tasks:
            if task.name not in self.plan.local and not self.plan.hub:
                self._lacks(task.name, "no folder for it in --data, and --hub is false")
            elif not self._take(
                task.name,
                self._revision(task),
                self._protocol(task),
                RANKINGS if task.type == "Retrieval" else RANKINGS[:1],
            ):
                self._tasks.append(task)
        sets = self.plan.long_sets
        protocol = self._long_protocol()
        found = [
            self._take(self._long_name(one), revision_of(one, sets, self.plan.pool), protocol)
            for one in sets
        ]
        if self.plan.pool == "each":
            self._long = [one for one, there in zip(sets, found, strict=True) if not there]
        elif not all(found):
            names = {self._long_name(one) for one in sets}
            self.results = [one for one in self.results if one.task not in names]
            self.cached = [name for name in self.cached if name not in names]
            self._long = list(sets)

    def execute(self, embed: Embed) -> None:
        """Do what is to do; each record is kept at once.

        Raises:
            CorpusError: a task's data is wrong, or it must be had and can't be.
        """
        for task in self._tasks:
            self._keep(self._evaluated(task, embed), self._protocol(task))
        prefixes = self._long_protocol()["prefixes"]
        self._keep(
            evaluate_long(
                self._long,
                embed,
                query_prefix=prefixes["query"],
                passage_prefix=prefixes["document"],
                pool=self.plan.pool,
                fingerprint=self.store.fingerprint,
            )
            if self._long
            else (),
            self._long_protocol(),
        )

    def report(self, card: Mapping[str, float]) -> dict[str, Any]:
        """All of it but the units, as plain values."""
        return {
            "encoder": self.spec.fingerprint,
            "tasks": [
                {
                    **dataclasses.asdict(dataclasses.replace(one, units={})),
                    "card": card.get(one.task),
                    "from_cache": one.task in self.cached,
                }
                for one in self.results
            ],
            "means": [dataclasses.asdict(one) for one in means(self.results, card)],
            "not_available": self.missing,
        }

    def _evaluated(self, task: Task, embed: Embed) -> Iterable[TaskResult]:
        from stella_ray.evaluate.cmteb import HubError, evaluate_task, open_task

        local = self.plan.local.get(task.name)
        if local is None and self._no_hub:
            self._lacks(task.name, f"no folder for it in --data, and {self._no_hub}")
            return ()
        try:
            opened = open_task(task, local)
        except HubError as error:
            # Asked for each of 35 tasks, a hub that isn't there takes a quarter of an hour.
            if isinstance(error.__cause__, ConnectionError) and not os.environ.get(OFFLINE):
                self._no_hub = f"the hub couldn't be reached for {task.name} before"
            self._lacks(task.name, str(error))
            return ()
        return evaluate_task(
            task,
            opened,
            embed,
            prefixes_of(task, self.plan.prefixes, self.spec),
            {"data": "hub" if local is None else local.folder},
            revision=self._revision(task),
            fingerprint=self.store.fingerprint,
        )

    def _take(
        self,
        task: str,
        revision: str,
        protocol: Mapping[str, Any],
        rankings: Sequence[str] = RANKINGS,
    ) -> bool:
        """Whether all of a task's records were there, and are taken."""
        if self.plan.fresh:
            return False
        found = [self.store.find(task, revision, protocol, ranking) for ranking in rankings]
        there = [one for one in found if one is not None]
        if len(there) < len(rankings):
            return False
        self.results += there
        self.cached.append(task)
        log.info("%s: from cache", task)
        return True

    def _keep(self, results: Iterable[TaskResult], protocol: Mapping[str, Any]) -> None:
        for one in results:
            self.store.keep(one, protocol)
            self.results.append(one)
            log.info("%s, %s: %s %.4f", one.task, one.ranking, one.metric, one.score)

    def _lacks(self, name: str, why: str) -> None:
        if self.plan.must:
            raise CorpusError(why if name in why else f"task {name}: {why}")
        self.missing[name] = why
        log.warning("%s: not available (%s)", name, why)

    def _revision(self, task: Task) -> str:
        if (local := self.plan.local.get(task.name)) is not None:
            return local.revision
        from stella_ray.evaluate.cmteb import hub_revision

        return hub_revision(task)

    def _protocol(self, task: Task) -> dict[str, Any]:
        """What a record depends on beside encoder and data."""
        prefixes = prefixes_of(task, self.plan.prefixes, self.spec)
        return {"mteb": metadata.version("mteb"), "split": task.split, "prefixes": prefixes}

    def _long_protocol(self) -> dict[str, Any]:
        spec = self.spec
        with_them = self.plan.prefixes != "none"
        prefixes = {"query": spec.query_prefix, "document": spec.passage_prefix}
        return {
            "type": LONG_TEXT,
            "pool": self.plan.pool,
            "prefixes": prefixes if with_them else dict.fromkeys(prefixes, ""),
        }

    def _long_name(self, one: LongSet) -> str:
        return one.name if self.plan.pool == "each" else f"{one.name} (all)"
