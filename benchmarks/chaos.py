"""Does the nightly job hold its promises while things are killed under it?

Nights in a loop over a corpus that changes, on a Ray cluster of two nodes, with the table on S3.
During a night the driver, an encoder or a node is killed, or S3 fails for a while; a reader
searches `live` all the time. Each night must end with exactly the corpus in the table, the reader
must never see an error or a mixture of nights, and the storage must stay bounded.

    python -m benchmarks.chaos --minutes 30 --documents 20000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attacks import Attacks, made_cluster
from benchmarks.nights import Corpus, Place, Reader, digest, made_place, pairs
from tests.conftest import make_encoder

ROOT = Path(__file__).parents[1]
ATTEMPTS = 8
"""Starts of one night before it counts as failed."""
NIGHT_SECONDS = 600
"""What one start may take before it counts as hanging."""
GROWTH = 6
"""Bytes of the database at most, against the first night's; several published versions are kept."""


class Chaos:
    """The run: nights, and what was wrong with them."""

    def __init__(self, options: argparse.Namespace, place: Place, cluster: Any, home: Path) -> None:
        self.options, self.place, self.home = options, place, home
        dice = random.Random(options.seed)
        self.corpus = Corpus(options.documents, dice)
        self.attacks = Attacks(place, cluster, dice)
        self.address, self.dice = cluster.address, dice
        self.encoder = make_encoder(home / "encoder")
        self.states: dict[str, int] = {}
        self.published: dict[int, str] = {}
        self.reader = Reader(place, self.states, random.Random(options.seed))
        self.bytes, self.codes, self.wrong = list[int](), Counter[int](), list[str]()
        self.calm_seconds, self.tags = 0.0, 0

    def run(self) -> None:
        """Nights until the time is up (or `--nights` are over), then the last checks."""
        end = time.monotonic() + 60 * self.options.minutes
        print(f"{'night':>5} {'rows':>7} {'embedded':>8} {'starts':>6} {'s':>5} {'MB':>7}  attacks")
        while not self.wrong and time.monotonic() < end:
            enough = self.options.nights and self.corpus.night >= self.options.nights
            if enough and set(self.attacks.kinds) <= set(self.attacks.done):
                break
            if self.states:
                self.corpus.mutate()
            self.corpus.write(self.place)
            self.states[self.corpus.digest()] = self.corpus.night
            self._night()
            if not self.reader.ident:
                self.reader.start()
            self.wrong += self.reader.wrong
        self.reader.over.set()
        if self.reader.ident:
            self.reader.join()
            self.wrong += [one for one in self.reader.wrong if one not in self.wrong]
        if not self.bytes:
            return
        self._check_tags()
        if max(self.bytes) > GROWTH * self.bytes[0]:
            self.wrong.append(f"the storage grew from {self.bytes[0]:,} to {max(self.bytes):,}")

    def _night(self) -> None:
        began, hits = time.monotonic(), list[str]()
        for attempt in range(1, ATTEMPTS + 1):
            calm = not self.bytes or (attempt > 1 and self.dice.random() < 0.5)
            code, hit, log = self._start(attempt, "" if calm else self.attacks.draw())
            hits += [hit] if hit else []
            self.codes[code] += 1
            if code == 0:
                break
            explained = hit.startswith(("s3", "node")) or (code == -signal.SIGKILL and hit)
            if not explained:
                said = "\n".join(log.read_text("utf-8", "replace").splitlines()[-30:])
                self.wrong.append(f"exit code {code} after {hit or 'nothing'}:\n{said}")
                return
        else:
            self.wrong.append(f"night {self.corpus.night} didn't end in {ATTEMPTS} starts")
            return
        spent = time.monotonic() - began
        self.calm_seconds = self.calm_seconds if hits and self.calm_seconds else spent
        report = json.loads((self.home / "report.json").read_text("utf-8"))
        self._check_night(report, attempt)
        self.bytes.append(int(self.place.files.du(f"{self.place.uri}/db")))
        print(
            f"{self.corpus.night:5} {len(self.corpus.texts):7,} {report['embedded']:8,}"
            f" {attempt:6} {spent:5.0f} {self.bytes[-1] / 1e6:7.1f}  {', '.join(hits)}",
            flush=True,
        )

    def _start(self, attempt: int, attack: str) -> tuple[int, str, Path]:
        """Run the job once, struck once; its exit code, what was hit, and its log."""
        words = [sys.executable, "jobs/embed.py", "--corpus", f"{self.place.uri}/corpus"]
        words += ["--table", f"{self.place.uri}/db/docs", "--encoder.path", str(self.encoder)]
        words += ["--pool.window_rows", "256", "--pool.rows_per_commit", "512"]
        words += ["--pool.encoders", "2", "--pool.cpus_per_encoder", "1"]  # one for each node
        words += ["--report", str(self.home / "report.json")]
        words += [*self.place.flags, *self.options.job.split()]
        log = self.home / f"{self.corpus.night}-{attempt}.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled"}
        with log.open("wb") as said:
            driver = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
            )
            try:
                hit = self.attacks.strike(attack, driver, self.calm_seconds) if attack else ""
                return driver.wait(NIGHT_SECONDS), hit, log
            except subprocess.TimeoutExpired:
                self.wrong.append(f"a start took more than {NIGHT_SECONDS} seconds")
                return 1, "", log
            finally:
                driver.kill()
                driver.wait()
                if self.place.proxy:
                    self.place.proxy.clear()
                    self.place.proxy.seen.clear()

    def _check_night(self, report: dict[str, Any], attempt: int) -> None:
        """What is live is the corpus, each vector is one, and nothing was embedded in vain."""
        live, night = self.place.open("live"), self.corpus.night
        table = live.to_table(columns=["doc_id", "text", "vector"])
        rows = pairs(table)
        self.published[int(live.version)] = found = digest(rows)
        if found != self.corpus.digest():
            wanted, there = Counter(self.corpus.texts.items()), Counter(rows)
            lost, more = (wanted - there).total(), (there - wanted).total()
            self.wrong.append(f"night {night}: {lost} rows lost, {more} doubled or foreign")
        norms = np.linalg.norm(np.stack(table["vector"].to_numpy()), axis=1)
        if not np.allclose(norms, 1, atol=1e-3):
            self.wrong.append(
                f"night {night}: {(abs(norms - 1) > 1e-3).sum()} vectors are no units"
            )
        few = report["embedded"] < self.corpus.changed and attempt == 1
        if few or report["embedded"] > self.corpus.changed:
            self.wrong.append(
                f"night {night}: {report['embedded']} embedded, {self.corpus.changed} had changed"
            )

    def _check_tags(self) -> None:
        """Each version that a tag names is the night that was published as it."""
        for tag, about in self.place.open("live").tags.list().items():
            version = int(about["version"])
            found = digest(pairs(self.place.open(version).to_table(columns=["doc_id", "text"])))
            # A driver that was killed right after it published: its version is known by its rows.
            if found != self.published.get(version, found) or found not in self.states:
                self.wrong.append(f"version {version}, {tag}, isn't the night that it was")
            self.tags += 1

    def __str__(self) -> str:
        """The summary and the verdict."""
        nights, starts = len(self.bytes), sum(self.codes.values())
        seen = ", ".join(f"{count:,} {what}" for what, count in self.reader.seen.items())
        first, most, last = [self.bytes[0], max(self.bytes), self.bytes[-1]] if nights else [0] * 3
        lines = [
            f"{nights} nights, {starts} starts, exit codes {dict(sorted(self.codes.items()))}",
            f"attacks: {dict(self.attacks.done)}",
            f"reader: {seen}; {self.tags} tagged versions compared at the end",
            f"storage, MB: {first / 1e6:.1f} at first, {most / 1e6:.1f} at most,"
            f" {last / 1e6:.1f} at the end",
            *self.wrong,
            "FAIL" if self.wrong else "PASS",
        ]
        return "\n".join(lines)


def main() -> None:
    """Build everything, run the nights, tear everything down, also on Ctrl-C; exit 1 on FAIL."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--nights", type=int, default=0, help="stop earlier: when so many are over")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--local", type=lambda word: word == "true", default=False)
    parser.add_argument("--server", choices=["moto", "weed"], default="moto")
    parser.add_argument("--job", default="", help="more flags for jobs/embed.py, as one word")
    options = parser.parse_args()
    # Ray starts its processes by fork and exec, so Lance's threads don't come along.
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    options.folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="chaos-", dir=options.folder) as home,
        made_place(Path(home), "local" if options.local else options.server) as place,
        made_cluster() as cluster,
    ):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Ray has set one of its own
        chaos = Chaos(options, place, cluster, Path(home))
        try:
            chaos.run()
        finally:
            chaos.reader.over.set()
            print(chaos)
    sys.exit(1 if chaos.wrong else 0)


if __name__ == "__main__":
    main()
