"""Pairs from a language model, end to end: a real server, real shards, stopped and gone on."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import synthesize
from jobs.synthesize import SynthesizeJob, run
from stella_ray import settings
from stella_ray.encode.models import EncoderSettings
from stella_ray.errors import IncompleteRun, SettingsError
from stella_ray.learn.asking import BUCKETS, AskSettings
from stella_ray.learn.reading import find_files, read_examples
from stella_ray.learn.sources import ExampleSource
from stella_ray.pipeline.endpoint import ClientSettings
from tests.chat import ChatServer, Reply, good, refused, said
from tests.learn.test_asking import document

pytestmark = pytest.mark.ray

DOCUMENTS = 40


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as chat:
        yield chat


@pytest.fixture
def place(tmp_path: Path, write_jsonl: Callable[..., Path], local_ray: None) -> Path:
    """Documents of 92 to 1,610 characters in two shards; some that can't be used."""
    rows = [{"id": f"d{i}", "text": document(i, 4 + i * 7 % 67)} for i in range(DOCUMENTS)]
    write_jsonl(tmp_path / "corpus/a.jsonl", [*rows[:25], {"id": "none", "text": None}])
    write_jsonl(tmp_path / "corpus/b.jsonl", [*rows[25:], {"id": "copy", "text": rows[5]["text"]}])
    return tmp_path


def job(
    place: Path, server: ChatServer, ask: dict[str, Any] | None = None, **more: Any
) -> SynthesizeJob:
    quick = {"timeout_seconds": 2.0, "backoff_seconds": 0.01, "concurrency": 8}
    client = ClientSettings(**{**quick, **more.pop("client", {})})
    own = {
        "corpus": [str(place / "corpus")],
        "endpoint": server.endpoint,
        "out": str(place / "out"),
    }
    own |= {"pairs": 20, "top_k": 0, "window": 8, "client": client}
    return SynthesizeJob(**{**own, "ask": AskSettings(model="m", **(ask or {})), **more})


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def pairs_of(place: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(place / "out/pairs.parquet").to_pylist()
    return found


def test_pairs_are_made_of_long_paragraphs_and_read_by_training_as_they_are(
    place: Path, server: ChatServer, capsys: pytest.CaptureFixture[str]
):
    report = run(job(place, server, price_in=0.5, price_out=2.0))
    pairs = pairs_of(place)
    assert report["pairs"] == len(pairs) == len(server.asked) == 20
    source = ExampleSource(name="s", kind="pairs", files=[str(place / "out/pairs.parquet")])
    examples = [one for path in find_files(source) for one in read_examples(path, source)]
    assert [(one.query, one.passage) for one in examples] == [
        (row["query"], row["passage"]) for row in pairs
    ]
    assert {(row["kind"], row["position"]) for row in pairs} == {
        (kind, position) for kind in ("question", "sentence") for position in ("start", "middle", "end")
    }  # fmt: skip
    lengths = [sum(len(row["passage"]) >= least for least in BUCKETS) for row in pairs]
    assert np.bincount(lengths, minlength=5).tolist() == [0, 2, 4, 6, 8]  # as the shares
    documents = {f"d{i}": document(i, 4 + i * 7 % 67) for i in range(DOCUMENTS)}
    for row in pairs:
        third = ("start", "middle", "end").index(row["position"])
        middle = (row["span_start"] + row["span_end"]) / 2 / len(row["passage"])
        assert third / 3 - 0.2 < middle < (third + 1) / 3 + 0.2
        assert row["passage"] in documents[row["doc_id"]]
        assert json.loads(row["raw"])[row["kind"]] == row["query"]
        assert (row["model"], row["temperature"], row["prompt_tokens"]) == ("m", 0.7, 700)
        assert row["prompt_version"] == report["prompt_version"]
    assert max(Counter(row["doc_id"] for row in pairs).values()) <= 3
    assert report["cost"] == pytest.approx((20 * 700 * 0.5 + 20 * 20 * 2.0) / 1e6)
    assert "20 pairs of 20 answers" in capsys.readouterr().out

    again = run(job(place, server))
    assert (again["asked"], again["answered_before"], len(server.asked)) == (0, 20, 20)
    assert pairs_of(place) == pairs

    assert run(job(place, server, pairs=25))["asked"] == 5  # on top
    assert pairs_of(place)[:20] == pairs
    kept = [one for path in (place / "out/answers").iterdir() for one in lines_of(path)]
    assert len({one["key"] for one in kept}) == len(kept) == len(server.asked) == 25


def test_bad_answers_are_rejected_with_their_reason_and_others_asked_instead(
    place: Path, server: ChatServer
):
    same = json.dumps({"question": "总是同一个问题怎么办", "sentence": "总是同一个问题怎么办"})
    bad: list[Callable[[dict[str, Any]], Reply]] = [
        lambda body: said("好的：\n第一行\n第二行"),
        lambda body: said("What is this paragraph about, please?"),
        lambda body: said("这段文字讲了什么事情呢"),
        lambda body: said("怎" * 70),
        lambda body: said(body["messages"][1]["content"].rsplit("\n", 1)[1][:20]),
        lambda body: said("半句", finish="length"),
        lambda body: said(same),
        lambda body: refused(500) if len(server.asked) % 3 else said(same),
    ]
    server.behave = lambda n, body: bad[n](body) if n < len(bad) else good(body)
    report = run(job(place, server, requests_per_pair=4.0))
    rejects = lines_of(place / "out/rejects.jsonl")
    assert report["pairs"] >= 20
    assert Counter(row["reason"] for row in rejects) == {
        name: count for name, count in report["rejected"].items() if count
    }
    wanted = {"form", "language", "pronoun", "length", "copied", "cut off"}
    assert wanted <= {row["reason"] for row in rejects}
    assert all(row["raw"] is not None and row["model"] == "m" for row in rejects)
    assert not {row["query"] for row in rejects} & {row["query"] for row in pairs_of(place)} - {
        "总是同一个问题怎么办"
    }
    assert report["judged"] == report["pairs"] + len(rejects)


def test_a_run_that_lost_its_server_goes_on_with_what_is_missing(place: Path, server: ChatServer):
    """Every request is answered exactly once over both runs."""
    server.behave = lambda n, body: good(body) if n < 11 else refused(503, "going down")
    gone = job(place, server, client={"tries": 2, "give_up_after": 3})
    with pytest.raises(
        IncompleteRun, match=r"of 20 pairs: http.* failed 3 requests.*503.*11 answers"
    ):
        run(gone)
    report = json.loads((place / "out/report.json").read_text(encoding="utf-8"))
    assert (report["pairs"], report["outcome"] == "complete") == (11, False)
    assert len(pairs_of(place)) == 11
    server.behave = lambda n, body: good(body)
    before = len(server.asked)
    report = run(job(place, server))
    assert (report["answered_before"], report["pairs"]) == (11, 20)
    assert len(server.asked) - before == 9
    assert max(Counter(server.answered).values()) == 1
    assert len(server.answered) == 20


def test_the_budget_is_kept_and_what_was_bought_is_written(place: Path, server: ChatServer):
    """Each request may cost some 2,000 tokens, by its characters; these cost 1,520."""
    usage = {"prompt_tokens": 1_500, "completion_tokens": 20}
    server.behave = lambda n, body: good(body, usage=usage)
    with pytest.raises(IncompleteRun, match=r"of 20 pairs: [\d,]+ tokens.*--max_total_tokens"):
        run(job(place, server, max_total_tokens=4_500))
    assert 1 <= len(server.asked) <= 4_500 // 1_520
    before = len(server.asked)
    with pytest.raises(IncompleteRun, match=r"of 20 pairs.*cost 0\.[\d]+\), and one request more"):
        run(job(place, server, price_out=10.0, max_cost=before * 200e-6))  # as much as was spent
    assert len(server.asked) == before  # over all runs in the folder
    assert len(pairs_of(place)) == before


def test_the_round_trip_is_that_of_the_encoder(place: Path, server: ChatServer, tiny_encoder: Path):
    from stella_ray.encode.encoder import Encoder

    how = EncoderSettings(path=str(tiny_encoder), device="cpu")
    with pytest.raises(
        IncompleteRun, match=r"of 60 pairs: the .* requests that were chosen are used up"
    ):
        run(job(place, server, pairs=60, top_k=3, pool_size=12, encoder=how, requests_per_pair=1.0))
    report = json.loads((place / "out/report.json").read_text(encoding="utf-8"))
    rejects = lines_of(place / "out/rejects.jsonl")
    rows = pairs_of(place) + [row for row in rejects if row["reason"] == "round trip"]
    assert report["rejected"]["round trip"] > 0
    assert report["pairs"] > 0
    encoder = Encoder(how)
    queries = encoder.embed([row["query"] for row in rows], prefix="query")
    passages = list(dict.fromkeys(row["passage"] for row in rows))
    similar = queries @ encoder.embed(passages).T
    for row, scores in zip(rows, similar, strict=True):
        assert row.get("reason") == (None if row["rank"] <= 3 else "round trip")
        own = scores[passages.index(row["passage"])]
        assert row["similarity"] == pytest.approx(own, abs=1e-4)
        # The pool is some of these passages, so none can be found later than among all.
        assert row["rank"] <= 1 + (scores > own - 1e-5).sum()


# Name: (what to change in the command line, exit code, what the line must say)
CASES = {
    "no model": (lambda p: ["--ask.model"], 2, "model"),
    "no address": (lambda p: ["--endpoint", "localhost"], 2, "isn't an address"),
    "a password in the address": (lambda p: ["--endpoint", "http://a:secret@h/v1"], 2, "OPENAI_API_KEY"),
    "no pairs": (lambda p: ["--pairs", "0"], 2, "pairs 0"),
    "an unknown kind": (lambda p: ["--kinds", "question,poem"], 2, "poem"),
    "a price without a cap's price": (lambda p: ["--max_cost", "1"], 2, "--price_in"),
    "somebody's folder": (lambda p: ["--out", str(p / "corpus")], 2, "isn't of jobs/synthesize.py"),
    "an out on S3": (lambda p: ["--out", "s3://bucket/x"], 2, "on a disk"),
    "no such corpus": (lambda p: ["--corpus", str(p / "none")], 3, "no such file"),
    "no such column": (lambda p: ["--text_column", "body"], 3, "no column body"),
    "short paragraphs alone": (lambda p: ["--ask.shortest", "990", "--ask.longest", "991"], 3, "none of 41 documents"),
    "a key that is refused": (lambda p: ["--ask.answer_tokens", "401"], 2, "401 .*OPENAI_API_KEY"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_a_person_can_mend_is_one_line(
    name: str, place: Path, server: ChatServer,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
):  # fmt: skip
    change, code, says = CASES[name]
    server.behave = lambda n, body: refused(body["max_tokens"])
    words = [
        "--corpus",
        str(place / "corpus"),
        "--endpoint",
        server.endpoint,
        "--out",
        str(place / "out"),
    ]
    words += ["--pairs", "5", "--top_k", "0", *([] if name == "no model" else ["--model", "m"])]
    monkeypatch.setattr(sys, "argv", ["jobs/synthesize.py", *words, *change(place)])
    with pytest.raises(SystemExit) as left:
        settings.run_job(synthesize.main)
    said_here = capfd.readouterr().err
    lines = [line for line in said_here.splitlines() if line.startswith("error: ")]
    assert (left.value.code, len(lines)) == (code, 1), said_here
    assert re.search(says, lines[0]), lines[0]
    assert "Traceback" not in said_here
    assert "secret" not in lines[0]


def test_two_runs_do_not_share_a_folder(place: Path, server: ChatServer):
    from stella_ray.pipeline.answers import synthesis_folder

    with synthesis_folder(str(place / "out")), pytest.raises(SettingsError, match="another run"):
        run(job(place, server))
    assert server.asked == []
