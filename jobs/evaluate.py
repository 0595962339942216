"""How good an encoder is: C-MTEB by mteb's protocol, and long texts by where the answer stands.

python jobs/evaluate.py --encoder.path MODEL --suite cmteb|mteb|long|all|TASK,… --output FOLDER
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from dataclasses import dataclass, field
from typing import Any, Literal

from stella_ray import settings
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import CorpusError, SettingsError
from stella_ray.evaluate.compare import Comparison, as_text, compare
from stella_ray.evaluate.evaluation import Evaluation, Plan
from stella_ray.evaluate.local_data import find_local
from stella_ray.evaluate.longtext import find_long_sets, read_long_set
from stella_ray.evaluate.page import comparison_page, encoder_page
from stella_ray.evaluate.references import card_of
from stella_ray.evaluate.summary import table
from stella_ray.evaluate.tasks import CMTEB, PrefixRule, find_tasks
from stella_ray.pipeline.cluster import PoolSettings, an_encoder_a_core, cluster, size_pool
from stella_ray.pipeline.texts import Embedders
from stella_ray.storage import StorageSettings, write_json, write_text

log = logging.getLogger("stella_ray.evaluate")

SUITES: dict[str, list[str]] = {
    "cmteb": list(CMTEB),
    "mteb": [name for name, task in CMTEB.items() if task.mteb_splits],
    "long": [],
    "all": list(CMTEB),
}
WITH_LONG = ("long", "all")


@dataclass(frozen=True, kw_only=True)
class LongSettings:
    """Long sets: which of their questions are asked."""

    sets: list[str] = field(default_factory=list)
    """Files of SQuAD's kind, folders with corpus, queries and qrels, or folders of these. Default:
    all in --data that no task of C-MTEB is called."""
    questions: str = "rule"
    """rule: those whose answer lies past 512 characters, and others undersampled; all; or a field
    of the set that says which."""
    short_per_long: float = 2.0
    """Other questions for each long one, where there are so many; the card's are 2."""
    seed: int = 0
    """Of the undersampling."""
    simplify: Literal["auto", "yes", "no"] = "auto"
    """Write traditional characters in their simplified form; auto: where there are many."""
    empty_questions: Literal["refuse", "leave_out", "ask"] = "refuse"
    """What to do with a question without a text."""


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """How good an encoder is: C-MTEB by mteb's protocol, and long texts."""

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    against: str | None = None
    """Another encoder (a hub id, a folder or a bundled name) to do the same, and to compare: which
    differences are more than chance."""
    suite: str = "cmteb"
    """cmteb: the 35 tasks of the model card; mteb: the 31 of them that are `MTEB(cmn, v1)`; long:
    the long sets; all: cmteb and long; or names of tasks and long sets with commas between them."""
    output: str
    """Folder of records, with a folder for each encoder; tasks that are there aren't done again."""
    data: str | None = None
    """Folder with a folder of files for each task (docs/evaluation.md). Default: all from the hub,
    where also a task that has no folder comes from."""
    hub: bool = True
    """Ask the hub for tasks that --data lacks."""
    prefixes: PrefixRule = "auto"
    """Tasks whose queries and passages have the encoder's prefixes. auto: retrieval, where they are
    piccolo's and stella's; retrieval and reranking with bge's and all others. Long sets always have
    them but with none."""
    pool: Literal["each", "all"] = "each"
    """What a long set's questions search: its own documents, or those of all sets."""
    reference: str = "stella-base-zh"
    """Whose published figures stand beside: stella-, piccolo- or bge-…-zh, as on stella's card."""
    fresh: bool = False
    """Do tasks again that are done."""
    long: LongSettings = field(default_factory=LongSettings)
    workers: PoolSettings = field(default_factory=PoolSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        card_of(self.reference)
        if not self.names and self.suite.lower() not in SUITES:
            raise SettingsError(
                f"suite {self.suite!r} names nothing; expected {', '.join(SUITES)} or tasks"
            )
        if self.suite.lower() == "long" and not (self.long.sets or self.data):
            raise SettingsError("suite long has no sets; give --long.sets or --data")

    @property
    def names(self) -> list[str]:
        """The tasks and long sets as they are asked for; none where they are a suite's."""
        if self.suite.lower() in SUITES:
            return []
        return [name.strip() for name in self.suite.split(",") if name.strip()]


def run(job: EvaluateJob) -> dict[str, Any]:
    """Do what isn't done, and show it beside the card's figures and the other encoder's.

    Raises:
        CorpusError: a task's files are wrong, or a task that was named can't be had.
    """
    settings.refuse_relative(output=job.output, data=job.data)
    for place in job.long.sets:
        settings.refuse_relative(**{"long.sets": place})
    job = dataclasses.replace(job, storage=job.storage.resolved())
    plan = planned(job)
    sides = evaluations(job, plan)
    for side in sides:
        side.look_up()
    if not all(side.done for side in sides):
        with cluster():
            pool = size_pool(an_encoder_a_core(job.workers))
            log.info("%s", pool)
            for side in sides:
                with Embedders(side.encoder, side.store.fingerprint, pool) as embedders:
                    side.execute(embedders.embed)
    card = card_of(job.reference)
    report: dict[str, Any] = {"settings": settings.shown(job), "reference": job.reference}
    for side in sides:
        own = report | side.report(card)
        write_json(f"{side.store.folder}/report.json", own, job.storage)
        page = encoder_page(side.spec.name, side.results)
        write_text(f"{side.store.folder}/report.html", page, job.storage)
        show(side, job, card)
    if not job.against:
        return own
    found = compare(sides[0].results, sides[1].results, (job.encoder.path, job.against))
    return own_and_other(job, sides, report, found)


def planned(job: EvaluateJob) -> Plan:
    """What to evaluate on: names found, files found, long sets read.

    Raises:
        SettingsError: an unknown name, or mteb isn't installed.
        CorpusError: a long set's files are wrong.
    """
    suite = job.suite.lower()
    places = long_places(job)
    names = find_tasks(job.names, list(places)) if job.names else [*SUITES[suite], *places]
    tasks = [CMTEB[name] for name in names if name in CMTEB]
    if tasks and not all(map(importlib.util.find_spec, ("mteb", "datasets"))):
        raise SettingsError(
            "C-MTEB's tasks need Python 3.11 and mteb, which isn't installed; pip install"
            " 'stella-ray[evaluate]'"
        )
    how = {
        one.name: getattr(job.long, one.name)
        for one in dataclasses.fields(job.long)
        if one.name != "sets"
    }
    return Plan(
        tasks=tasks,
        local=find_local(job.data, tasks, job.storage) if job.data and tasks else {},
        long_sets=[
            read_long_set(places[name], name, storage=job.storage, **how)
            for name in names
            if name in places
        ],
        output=job.output,
        prefixes=job.prefixes,
        pool=job.pool,
        hub=job.hub,
        must=bool(job.names),
        fresh=job.fresh,
        storage=job.storage,
    )


def long_places(job: EvaluateJob) -> dict[str, str]:
    """Where the long sets lie that may be asked for, by name.

    Raises:
        CorpusError: there is none where one is named or wanted.
    """
    tasks = {name.lower() for name in CMTEB}
    wanted = job.suite.lower() in WITH_LONG or any(n.lower() not in tasks for n in job.names)
    if not wanted or not (job.long.sets or job.data):
        return {}
    try:
        places = find_long_sets(job.long.sets or [str(job.data)], job.storage)
    except CorpusError:
        if job.long.sets or job.suite.lower() == "long":
            raise
        log.warning("no long sets in --data %s", job.data)
        return {}
    return {name: path for name, path in places.items() if name.lower() not in tasks}


def evaluations(job: EvaluateJob, plan: Plan) -> list[Evaluation]:
    """The encoder's run, and the other one's."""
    out = [Evaluation(job.encoder, plan)]
    if job.against:
        # How it runs is the same; what belongs to a model is its own.
        how = {name: getattr(job.encoder, name) for name in ("dtype", "token_budget", "device")}
        other = EncoderSettings(path=job.against, implementation=job.encoder.implementation, **how)
        out.append(Evaluation(other, plan))
    return out


def own_and_other(
    job: EvaluateJob, sides: list[Evaluation], report: dict[str, Any], found: Comparison
) -> dict[str, Any]:
    """Write and print the comparison."""
    folders = [side.store.folder.rpartition("/")[2] for side in sides]
    path = f"{job.output.rstrip('/')}/{folders[0]}-against-{folders[1]}"
    card = card_of(job.reference)
    both = report | {
        "a": sides[0].report(card),
        "b": sides[1].report(card),
        "comparison": found.to_json(),
    }
    write_json(f"{path}.json", both, job.storage)
    write_text(f"{path}.html", comparison_page(found), job.storage)
    print(as_text(found))
    print(f"comparison: {path}.html")
    return both


def show(side: Evaluation, job: EvaluateJob, card: dict[str, float]) -> None:
    """Print the table, and what isn't in it."""
    print(side.spec.name)
    if side.results:
        print(table(side.results, card, job.reference, side.cached))
    if side.missing:
        print(f"not available, {len(side.missing)} tasks: {', '.join(side.missing)}")
    print(f"report: {side.store.folder}/report.html")


def main() -> None:
    """Read the settings first: a typo costs nothing."""
    job = settings.read_settings(EvaluateJob, about=(__doc__ or "").split("\n\n")[0])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run(job)


if __name__ == "__main__":
    settings.run_job(main)
