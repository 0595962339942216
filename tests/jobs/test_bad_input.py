"""Forty kinds of bad input: one clear line, the exit code of its kind, the published version untouched."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import embed
from stella_ray import settings
from tests.conftest import make_encoder
from tests.jobs.conftest import Evening

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Place:
    """A published table, its corpus and encoder, and a folder for what is bad."""

    corpus: Path
    table: Path
    encoder: Path
    bad: Path

    def new(self, name: str, data: bytes | str) -> str:
        path = self.bad / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path)

    def later(self, data: str) -> str:
        """A shard behind the corpus's own, which nobody looks at before the run."""
        path = self.corpus.parent / "later/z.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(data, encoding="utf-8")
        return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, evening: Evening) -> Place:
    home = tmp_path_factory.mktemp("bad input")
    (home / "bad").mkdir()
    desk = evening.desk.copy(home)
    return Place(desk.corpus, desk.table, desk.encoder, home / "bad")


def parquet(place: Place, name: str, **columns: object) -> str:
    pq.write_table(pa.table(columns), place.bad / name)
    return str(place.bad / name)


def line(**cells: object) -> str:
    return json.dumps(cells, ensure_ascii=False) + "\n"


def changed_encoder(place: Place, name: str, change: Callable[[Path], object]) -> list[str]:
    folder = place.bad / name
    shutil.copytree(place.encoder, folder, dirs_exist_ok=True)
    change(folder)
    return ["--encoder.path", str(folder)]


def config(**new: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        old = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**old, **new}))

    return change


GZ = gzip.compress(line(id="a", text="文字" * 500).encode() * 400)
GOOD = line(id="x", text="好")

# Name: (what to change in the command line, exit code, what the line must say)
CASES: dict[str, tuple[Callable[[Place], list[str]], int, str]] = {
    # settings: 2
    "no corpus": (lambda p: ["--corpus", "[]"], 2, "--corpus is missing"),
    "an unknown flag": (lambda p: ["--tabel", "x"], 2, "--tabel; did you mean --table"),
    "a word for a number": (lambda p: ["--max_delete_fraction", "lots"], 2, "float"),
    "a share above 1": (lambda p: ["--max_reject_fraction", "7"], 2, "7.*0 to 1"),
    "an unknown dtype": (lambda p: ["--encoder.dtype", "int3"], 2, "int3"),
    "a budget below a row": (lambda p: ["--encoder.max_tokens", "512", "--encoder.token_budget", "100"], 2, "100.*512"),
    "a tiny max_tokens": (lambda p: ["--encoder.max_tokens", "2"], 2, "2.*8"),
    "no commits ever": (lambda p: ["--pool.rows_per_commit", "0"], 2, "rows_per_commit 0"),
    "a negative pool": (lambda p: ["--pool.encoders", "-1"], 2, "encoders -1"),
    "a kept column of the table's own": (lambda p: ["--keep_columns", "vector"], 2, "vector.*rename"),
    "a config file that isn't there": (lambda p: ["--config", "/no/such.yaml"], 2, "such.yaml"),
    "more GPUs than there are": (lambda p: ["--pool.gpus_per_encoder", "1"], 2, "1 GPU.*has 0"),
    "more CPUs than there are": (lambda p: ["--pool.encoders", "64"], 2, "CPUs.*has 2"),
    "no CUDA device": (lambda p: ["--encoder.device", "cuda:0", "--corpus", str(p.corpus), p.new("c.jsonl", GOOD)], 2, "no CUDA"),
    "a storage nobody knows": (lambda p: ["--corpus", "nope://bucket/x.parquet"], 2, "nope://"),
    # corpus: 3
    "no such file": (lambda p: ["--corpus", "/no/such/file.jsonl"], 3, "no such file or folder"),
    "a pattern without match": (lambda p: ["--corpus", f"{p.corpus}/*.csv"], 3, "no file matches"),
    "a folder without shards": (lambda p: ["--corpus", str(p.encoder)], 3, "none of its .* is a shard"),
    "an unknown format": (lambda p: ["--corpus", p.new("x.xml", "<a/>")], 3, "x.xml.*expected .parquet"),
    "an empty file": (lambda p: ["--corpus", p.new("zero.jsonl", "")], 3, "zero.jsonl.*empty"),
    "a csv with a header only": (lambda p: ["--corpus", p.new("h.csv", "id,text\n")], 3, "h.csv.*empty"),
    "a parquet without rows": (lambda p: ["--corpus", parquet(p, "no.parquet", id=pa.array([], pa.string()), text=pa.array([], pa.string()))], 3, "no.parquet.*empty"),
    "a parquet that isn't one": (lambda p: ["--corpus", p.new("t.parquet", "just text")], 3, "t.parquet.*parquet"),
    "a cut parquet": (lambda p: ["--corpus", p.new("cut.parquet", Path(parquet(p, "w.parquet", id=["a"], text=["文"])).read_bytes()[:-9])], 3, "cut.parquet"),
    "a cut gzip": (lambda p: ["--corpus", p.new("cut.jsonl.gz", GZ[:-40])], 3, "cut.jsonl.gz"),
    "a gzip that isn't one": (lambda p: ["--corpus", p.new("not.jsonl.gz", GOOD)], 3, "not.jsonl.gz"),
    "a jsonl without the text column": (lambda p: ["--corpus", p.new("nt.jsonl", line(id="a", body="文"))], 3, "no column text.*id, body"),
    "a csv without the id column": (lambda p: ["--corpus", p.new("ni.csv", "key,text\n1,文\n")], 3, "no column id.*key, text"),
    "a parquet without a kept column": (lambda p: ["--rebuild", "true", "--keep_columns", "url", "--corpus", parquet(p, "nk.parquet", id=["a"], text=["文"])], 3, "no column url"),
    "texts that are numbers": (lambda p: ["--corpus", parquet(p, "num.parquet", id=["a"], text=[1.5])], 3, "text is double, expected text"),
    "a later shard without the text column": (lambda p: ["--corpus", str(p.corpus), p.later(line(id="a", body="文"))], 3, "z.jsonl: no column text.*id, body"),
    "jsonl texts that are lists": (lambda p: ["--corpus", p.new("l.jsonl", line(id="a", text=["文"]))], 3, "a list, expected text"),
    "ids that are floats": (lambda p: ["--corpus", parquet(p, "f.parquet", id=[1.5], text=["文"])], 3, "id is double"),
    "a JSON array instead of lines": (lambda p: ["--corpus", p.new("arr.jsonl", '[{"id": 1, "text": "文"}]')], 3, "one JSON object on each line"),
    "a csv with an open quote": (lambda p: ["--corpus", p.new("q.csv", 'id,text\n1,"文\n')], 3, "q.csv.*csv"),
    # encoder: 4
    "no such model": (lambda p: ["--encoder.path", "/no/model"], 4, "/no/model.*bundled name"),
    "another encoder": (lambda p: ["--encoder.path", str(make_encoder(p.bad / "seed5", seed=5))], 4, "weights.*--rebuild"),
    "another prefix": (lambda p: ["--encoder.prefix", "none"], 4, "differ in prefix.*--rebuild"),
    "max_tokens above the positions": (lambda p: ["--encoder.max_tokens", "4096"], 4, "4096.*1024"),
    "weights that were cut": (lambda p: changed_encoder(p, "cut", lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-500])), 4, "weights|safetensors|--rebuild"),
    "no weights": (lambda p: changed_encoder(p, "none", lambda f: (f / "model.safetensors").unlink()), 4, "safetensors"),
    "no tokenizer": (lambda p: changed_encoder(p, "notok", lambda f: (f / "tokenizer.json").unlink()), 4, "tokenizer.json"),
    "a config that isn't JSON": (lambda p: changed_encoder(p, "cfg", lambda f: (f / "config.json").write_text("{")), 4, "config.json.*JSON"),
    "a config of something else": (lambda p: changed_encoder(p, "else", lambda f: (f / "config.json").write_text("{}")), 4, "hidden_size"),
    "a revision of a folder": (lambda p: ["--encoder.revision", "v2"], 4, "v2.*local folder"),
    # table: 5
    "a table name with a slash too few": (lambda p: ["--table", "/docs tab"], 5, "DIR/NAME"),
    "a file in the table's place": (lambda p: ["--table", p.new("file.lance", "x")], 5, "not a Lance table"),
    "other columns than the table's": (lambda p: ["--store_text", "false"], 5, "--store_text.*--rebuild"),
    # the run: 6
    "rows to reject": (lambda p: ["--corpus", str(p.corpus), p.new("r.jsonl", GOOD + line(id="n", text=None))], 6, "1 of 14 rows.*rejects.jsonl"),
    "a corpus that shrank": (lambda p: ["--corpus", p.new("one.jsonl", GOOD)], 6, "12 of the table's 1[23] documents"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line_and_the_right_exit_code(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    change, code, says = CASES[name]
    before = lance.dataset(f"{place.table}.lance", version="live").to_table()
    flags = {
        "--corpus": [str(place.corpus)],
        "--table": [str(place.table)],
        "--encoder.path": [str(place.encoder)],
    }
    words = change(place)
    for flag in [word for word in words if word in flags]:
        del flags[flag]
    rest = [word for flag, values in flags.items() for word in (flag, *values)]
    monkeypatch.setattr(sys, "argv", ["jobs/embed.py", *words, *rest])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(SystemExit) as left:
        settings.run_job(embed.main)

    said = capfd.readouterr().err
    lines = [text for text in said.splitlines() if text.startswith("error: ")]
    assert left.value.code == code, said
    assert len(lines) == 1, said
    assert "Traceback" not in said
    assert re.search(says, lines[0]), lines[0]
    after = lance.dataset(f"{place.table}.lance", version="live").to_table()
    assert after.equals(before)


def test_there_are_forty_kinds() -> None:
    assert len(CASES) >= 40
