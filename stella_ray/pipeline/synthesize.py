"""From requests to pairs, in rounds: ask what is likely to be enough, judge, ask the rest."""

from __future__ import annotations

import logging
import math
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray

from stella_ray.errors import SettingsError
from stella_ray.learn.asking import PROMPT_VERSION, AskSettings, Request
from stella_ray.learn.synthetic import Seen, judge
from stella_ray.pipeline.answers import AnswerFiles
from stella_ray.pipeline.budget import Budget
from stella_ray.pipeline.choose import as_windows
from stella_ray.pipeline.cluster import TASK_CPUS, Pool, keep_ray_data_quiet
from stella_ray.pipeline.endpoint import Answer, Client, ClientSettings
from stella_ray.pipeline.round_trip import RoundTrip

log = logging.getLogger(__name__)

PER_ASKER = 16
"""Requests in flight of one asker, an actor that needs little more than its connection."""

SECONDS_PER_LINE = 10.0
"""Between two lines of progress."""

ANSWER = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("raw", pa.string()),
        pa.field("finish", pa.string()),
        pa.field("prompt_tokens", pa.int64()),
        pa.field("completion_tokens", pa.int64()),
        pa.field("counted", pa.bool_()),
        pa.field("tries", pa.int32()),
        pa.field("seconds", pa.float64()),
        pa.field("failure", pa.string()),
        pa.field("fatal", pa.bool_()),
        pa.field("gave_up", pa.bool_()),
    ]
)
"""An `Answer` as a row."""

PAIR = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("passage", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("position", pa.string()),
        pa.field("span_start", pa.int32()),
        pa.field("span_end", pa.int32()),
        pa.field("doc_id", pa.string()),
        pa.field("rank", pa.int64()),
        pa.field("similarity", pa.float32()),
        pa.field("model", pa.string()),
        pa.field("prompt_version", pa.string()),
        pa.field("temperature", pa.float64()),
        pa.field("seed", pa.int64()),
        pa.field("raw", pa.string()),
        pa.field("prompt_tokens", pa.int64()),
        pa.field("completion_tokens", pa.int64()),
        pa.field("request", pa.string()),
    ]
)
"""A finished pair: what an `ExampleSource` reads, the span of the passage that was asked about, the
place at which the round trip found the passage, and where the query came from."""


class Ask:
    """An actor that holds the client: a window of requests in, their answers out."""

    def __init__(self, url: str, ask: AskSettings, settings: ClientSettings) -> None:
        keep_ray_data_quiet()
        self.client = Client(url, ask, settings)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Ask a window, `choose.REQUEST`; gives `ANSWER`."""
        answers = self.client.answers([Request(**row) for row in block.to_pylist()])
        return pa.Table.from_pylist([vars(answer) for answer in answers], schema=ANSWER)


@dataclass
class Synthesis:
    """Requests on their way to pairs; `execute` runs until there are enough of them.

    Attributes:
        requests: in the order in which they are asked.
        pairs: wanted.
        window: requests of a window: what is lost where this process is killed, for each asker.
        most_rank: place at which the round trip must find the passage; 0: it isn't made.
        judged: a row for each answer that was judged, `reason` None where it is a pair.
        stopped: why there are fewer pairs than wanted.
    """

    requests: list[Request]
    answers: AnswerFiles
    url: str
    ask: AskSettings
    client: ClientSettings
    budget: Budget
    pairs: int
    window: int
    pool: Pool
    most_rank: int
    round_trip: RoundTrip | None
    judged: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    considered: int = 0
    asked: int = 0
    from_before: int = 0
    tries: int = 0
    stopped: str | None = None
    _seen: Seen = field(default_factory=Seen)

    @property
    def accepted(self) -> int:
        """Pairs so far."""
        return sum(row["reason"] is None for row in self.judged)

    def execute(self) -> None:
        """Ask and judge in rounds.

        1. Take as many requests as would do if they were accepted as often as those before.
        2. Ask those that no run has asked. 3. Judge them. 4. Again, until there are enough pairs,
        the requests are used up, the budget is, or the endpoint is gone (`stopped`).

        Raises:
            SettingsError: the endpoint refuses the key, or knows no such model.
        """
        while self.stopped is None and (wanted := self.pairs - self.accepted) > 0:
            rate = self.accepted / self.considered if self.considered else 1.0
            count = math.ceil(wanted / max(rate, 0.1))
            some = self.requests[self.considered : self.considered + count]
            if not some:
                self.stopped = (
                    f"the {len(self.requests):,} requests that were chosen are used up; give a"
                    " larger --corpus, or raise --requests_per_pair or --ask.per_document"
                )
                break
            self.considered += len(some)
            self._ask_missing(some)
            self._judge([one for one in some if one.key in self.answers.known])

    def _ask_missing(self, requests: list[Request]) -> None:
        missing = [one for one in requests if one.key not in self.answers.known]
        self.from_before += len(requests) - len(missing)
        while missing and self.stopped is None:
            spent = self.answers.tokens()
            count = self.budget.affordable(missing, self.ask, spent)
            if not count:
                cost = self.budget.cost(*spent)
                self.stopped = (
                    f"{sum(spent):,} tokens were spent (cost {cost:.4f}), and one request more"
                    " could pass the budget; raise --max_total_tokens or --max_cost"
                )
                return
            self._ask(missing[:count])
            missing = missing[count:]

    def _ask(self, requests: list[Request]) -> None:
        """Ask these, and write each window's answers as it ends.

        An asker that has given up answers the rest of its windows at once, so that all of what the
        others have in hand is kept.

        Raises:
            SettingsError: the endpoint refuses the key, or knows no such model.
        """
        done, before, said = 0, len(self.answers.known), time.monotonic()
        gone: Answer | None = None
        for block in self._windows(requests):
            answers = [Answer(**row) for row in block.to_pylist()]
            self.answers.add(answers, self.ask.model)
            done += len(answers)
            for answer in answers:
                self.asked += answer.tries > 0
                self.tries += answer.tries
                if answer.failure is not None and answer.tries:
                    self.failures.append(answer.failure)
                gone = gone or (answer if answer.gave_up else None)
            if time.monotonic() - said > SECONDS_PER_LINE:
                log.info("%s of %s requests answered", f"{done:,}", f"{len(requests):,}")
                said = time.monotonic()
        kept = f"{len(self.answers.known):,} answers are kept; run again to go on"
        if gone is not None and gone.fatal:
            raise SettingsError(f"{self.url}: {gone.failure} ({kept})")
        if gone is not None:
            many = self.client.give_up_after
            self.stopped = (
                f"{self.url} failed {many} requests in a row, the last with: {gone.failure}. {kept}"
            )
        elif len(self.answers.known) == before:
            self.stopped = (
                f"{self.url} answered none of {len(requests):,} requests, the last with:"
                f" {self.failures[-1]}. {kept}"
            )

    def _windows(self, requests: list[Request]) -> Any:
        """Blocks of answers, in the order in which they end."""
        own = self.client
        windows = as_windows(requests, self.window)
        askers = max(1, min(len(windows), -(-own.concurrency // PER_ASKER)))
        each = replace(own, concurrency=max(1, own.concurrency // askers))
        # A window that is waited for is no standstill: it ends by its own time-outs.
        patience = self.pool.no_progress_seconds + math.ceil(each.longest_window(self.window))
        dataset = ray.data.from_arrow(windows)
        dataset.context.execution_no_progress_timeout_s = patience
        with warnings.catch_warnings():
            # As for embedding: the bound on retries has no other way in.
            warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
            found = dataset.map_batches(
                Ask,
                fn_constructor_args=(self.url, self.ask, each),
                compute=ray.data.ActorPoolStrategy(size=askers),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=TASK_CPUS,
                max_task_retries=self.pool.window_retries,
            )
        return found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)

    def _judge(self, requests: list[Request]) -> None:
        rows = []
        for one in requests:
            answer = self.answers.known[one.key]
            verdict = judge(answer.raw or "", answer.finish, one.kind, one.passage)
            rows.append(self._row(one, answer, verdict.query) | {"reason": verdict.reason})
        fine = [row for row in rows if row["reason"] is None]
        if self.round_trip is not None:
            places, similar = self.round_trip.ranks(
                [row["query"] for row in fine], [row["passage"] for row in fine]
            )
            for row, rank, share in zip(fine, places.tolist(), similar.tolist(), strict=True):
                row |= {"rank": rank, "similarity": share}
                row["reason"] = None if rank <= self.most_rank else "round trip"
        for row in fine:
            if row["reason"] is None and not self._seen.add(row["query"]):
                row["reason"] = "duplicate"
        self.judged += rows

    def _row(self, one: Request, answer: Answer, query: str | None) -> dict[str, Any]:
        return {
            "query": query,
            "passage": one.passage,
            "kind": one.kind,
            "position": one.position,
            "span_start": one.start,
            "span_end": one.end,
            "doc_id": one.doc_id,
            "rank": None,
            "similarity": None,
            "model": self.ask.model,
            "prompt_version": PROMPT_VERSION,
            "temperature": self.ask.temperature,
            "seed": one.seed,
            "raw": answer.raw,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "request": one.key,
        }
