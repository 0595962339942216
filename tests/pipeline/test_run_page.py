"""The page of a run: whole, safe, and readable on a telephone and a desk in a real browser."""

from __future__ import annotations

import html
import json
import logging
import random
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from stella_ray.encode.models import EncoderSettings, EncoderSpec, find_encoder
from stella_ray.pipeline.earlier import earlier_reports
from stella_ray.pipeline.estimate import EstimateSettings
from stella_ray.pipeline.history import History
from stella_ray.pipeline.report import RunReport
from stella_ray.pipeline.run_files import page_beside, save
from stella_ray.pipeline.run_page import NIGHTS, run_page
from stella_ray.storage import write_json

EVIL = "<script>alert('甲')</script>&\"'"
TABLE = "s3://a-bucket-with-a-rather-long-name/embeddings/corpus/production/zh_documents.lance"


def history(actors: int) -> dict[str, Any]:
    dice, told = random.Random(1), History(0.0)
    for i in range(3_000):
        told.timeline.add("documents", 9_000 + dice.randrange(4_000), i * 10, i * 10)
        told.timeline.add("tokens", 8_192 * dice.uniform(250, 320), i * 10, i * 10 + 15)
    told.lengths = [10, 300, 2_000, 90_000, 400_000, 5_000_000, 4_000_000, 2_500_000, 9, 8, 7, 6,
                    5, 4, 3, 2, 1]  # fmt: skip
    for stage, wait in told.waits.items():
        wait.add(len(stage) + 0.25)
    share = {"windows": 187, "rows": 1_536_000, "tokens": 443_123_456, "padded_tokens": 450_000_000,
             "matrix_seconds": 9_000.0, "halvings": 1}  # fmt: skip
    told_of = [{"actor": f"{i:08x}", "node": f"ip-10-0-{i}-17.eu-central-1.compute.internal",
                "seconds": 25_000.0 + i, **share} for i in range(actors)]  # fmt: skip
    return {**told.to_json(), "actors": told_of}


def full_report(**values: Any) -> dict[str, Any]:
    report = RunReport(
        run_id="20261123T220318-e68662", table=TABLE,
        encoder={"name": "stella-base-zh", "digest": "ab" * 16}, settings={},
        outcome="published", rows_read=24_500_007, embedded=24_000_001, unchanged=400_002,
        rejected=99_003, repeated=1_001, deleted=1_204, replaced=30_005, bad_shards=6,
        truncated=950_123, tokens=7_100_000_000, padded_tokens=7_300_000_000, kept_unseen=7,
        table_documents=24_400_010, table_rows=24_400_010, version=1_873, live_before=1_370,
        pool="16 encoders with 1 GPU each", encoders=16, rejects=f"{TABLE}/rejects.jsonl",
        reject_kinds={"the text is null": 70_000, EVIL: 8_125}, commits=502,
        committed_rows=24_000_008, halvings=16, tokens_per_second=236_412.2, device_busy=0.912,
        matrix_share=0.3712, began=1_795_471_398.0, history=history(16),
        gate=[{"name": "keys", "passed": True, "found": "24,400,010 rows"},
              {"name": "recall", "passed": False, "found": "recall@10 0.93, expected 0.95"}],
        seconds={"known": 12.1, "embed": 30_018.0, "index": 3_612.4, "gate": 212.0,
                 "read": 54_000.2, "encode": 420_000.3, "write": 20_000.0, "first_batch": 33.3,
                 "first_receipt": 41.2, "total": 33_990.0},
        costs={"encoder_hours": 151.1, "price_per_hour": 3.5, "cost": 528.85,
               "expected": {"encoder_hours": 131.2, "cost": 459.2, "rate": "16 h100 at 940,000"}},
    )  # fmt: skip
    return {**asdict(report), **values}


def nights(count: int) -> list[dict[str, Any]]:
    dice = random.Random(2)
    return [
        full_report(run_id=f"n{i}", began=1_795_471_398.0 - 86_400 * (i + 1), table_rows=1_000 + i,
                    embedded=dice.randrange(400_000), history={})
        for i in range(count)
    ]  # fmt: skip


def words_of(page: str) -> str:
    """What a reader reads, without the drawings."""
    return html.unescape(re.sub(r"<(style|svg).*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL))


# ---------------------------------------------------------------- as text


def test_every_count_is_on_the_page_and_the_sums_are_written_out() -> None:
    words = " ".join(words_of(run_page(full_report(), nights(40))).split())
    for says in (
        "24,500,007 rows read = 24,000,001 embedded + 400,002 unchanged + 99,003 rejected"
        " + 1,001 repeated",
        "24,400,010 documents = 24,000,001 embedded + 400,002 unchanged + 7 kept unseen",
        "1,204 deleted", "30,005 old texts replaced", "6 bad shards", "502 commits",
        "24,000,008 rows committed", "7.1G", "236k", "91%", "37%", "528.85", "459.20",
        "2.7% padding", "950,123 rows cut", "16 times the token budget", "30,018.0", "420,000.3",
        "443,123,456", "ip-10-0-15-17", "8,125", "recall@10 0.93", "published: version 1,873",
        "This night against the last 30", "11-22", "16 encoders with 1 GPU",
    ):  # fmt: skip
        assert says in words, says
    assert words.count("published") == NIGHTS + 2


def test_the_page_needs_no_network_and_runs_no_script_whatever_names_hold() -> None:
    report = full_report(outcome=EVIL, table=EVIL, run_id=EVIL, pool=EVIL, rejects=EVIL)
    report["gate"][0]["found"] = report["encoder"]["name"] = EVIL
    report["history"]["actors"][0] |= {"actor": EVIL, "node": EVIL}
    report["history"]["waits"][EVIL] = {"blocks": 1, "seconds": 1, "longest": 1}
    report["seconds"][EVIL] = 1.0
    report["costs"]["expected"]["rate"] = EVIL
    report["versions"] = {EVIL: EVIL}
    page = run_page(report, [full_report(run_id="n", outcome=EVIL)])
    assert html.escape(EVIL) in page
    assert "<script" not in page
    for sign in ("http:", "https:", "//cdn", "@import", "url(", "<link", "<img", "<iframe"):
        assert sign not in page
    assert not re.findall(r"<[^>]*\s(?:on\w+|src|href)\s*=", page)


def test_a_run_without_anything_and_one_of_an_older_version_have_a_page() -> None:
    page = run_page(asdict(RunReport("r", "db/docs.lance", {}, {})), [])
    assert "unfinished" in words_of(page)
    assert "0 rows read = 0 embedded" in words_of(page)
    assert "nan" not in page.lower()
    old = {"run_id": "o", "table": "db/docs.lance", "outcome": "published", "seconds": None}
    assert "published" in words_of(run_page(full_report(), [old]))
    assert words_of(run_page(old, [full_report()]))


def test_a_failed_run_s_page_says_why() -> None:
    why = "IncompleteRun: 6 of 18 rows were rejected; mend them"
    words = words_of(run_page(full_report(outcome=why, version=None), []))
    assert why in words
    assert "published" not in words


# ---------------------------------------------------------------- as files


@pytest.fixture
def spec(tiny_encoder: Path) -> EncoderSpec:
    return find_encoder(EncoderSettings(path=str(tiny_encoder)))


def test_a_page_is_beside_each_report_with_the_nights_before(
    tmp_path: Path, spec: EncoderSpec
) -> None:
    uri = str(tmp_path / "docs.lance")
    for i in range(4):
        other = str(tmp_path / "other.lance") if i == 2 else uri
        place = tmp_path / f"runs/2026112{i}T000000-aa/report.json"
        write_json(str(place), full_report(run_id=f"night{i}", table=other))
    (tmp_path / "runs/20261124T000000-bb").mkdir()
    (tmp_path / "runs/20261125T000000-cc").mkdir()
    (tmp_path / "runs/20261125T000000-cc/report.json").write_text("{")
    assert [one["run_id"] for one in earlier_reports(uri, 2)] == ["night3", "night1"]
    assert earlier_reports(str(tmp_path / "nowhere/docs.lance"), 2) == []
    report = RunReport("now", uri, {}, {}, pool="2 encoders", encoders=2, tokens=1_000, embedded=10)
    report.seconds["total"] = 1_800.0
    places = [str(tmp_path / "runs/20261126T000000-dd/report.json"), str(tmp_path / "copy")]
    save(report, places, EstimateSettings(price_per_hour=3.0, tokens_per_second=10.0), spec)
    saved = json.loads(Path(places[0]).read_text("utf-8"))
    assert saved["costs"]["cost"] == 3.0
    assert saved["costs"]["expected"]["cost"] == pytest.approx(1_000 / 10 / 3_600 * 3)
    page = Path(page_beside(places[0])).read_text("utf-8")
    assert "This night against the last 3" in page
    assert page == (tmp_path / "copy.html").read_text("utf-8")


def test_a_page_that_can_not_be_drawn_or_written_costs_a_word_in_the_log(
    tmp_path: Path, spec: EncoderSpec, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "runs/1/report.json"
    report = RunReport("now", str(tmp_path / "docs.lance"), {}, {}, pool="1 encoder", tokens=5)
    (tmp_path / "runs/1/report.html").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        save(report, [str(place)], EstimateSettings(gpu="abacus"), spec)
        assert "the run's cost isn't known (estimate.gpu 'abacus'" in caplog.text
        assert "the report's page could not be written" in caplog.text
        report.history = {"actors": 3}
        save(report, [str(place)], EstimateSettings(), spec)
    assert "the report's page could not be drawn" in caplog.text
    assert json.loads(place.read_text("utf-8"))["tokens"] == 5


# ---------------------------------------------------------------- in a browser

MEASURE = """<!doctype html><meta charset="utf-8"><body>{frames}<pre id="found"></pre><script>
window.onload = () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, width = page.documentElement.clientWidth;
    const inside = e => e.closest(".wide") || e.closest("svg");
    const wide = [...page.body.querySelectorAll("*")].filter(
      e => !inside(e) && e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML);
    const cut = [...page.querySelectorAll("svg text")].filter(e => {{
      const box = e.getBBox(), all = e.ownerSVGElement.viewBox.baseVal;
      return box.x < -1 || box.x + box.width > all.width + 1 || box.y + box.height > all.height + 1;
    }}).map(e => e.textContent);
    const small = [...page.querySelectorAll("svg text, td, div, p")].filter(
      e => parseFloat(getComputedStyle(e).fontSize) < 10).length;
    return {{width, scroll: page.documentElement.scrollWidth, wide, cut, small,
             plots: page.querySelectorAll("svg").length}};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}}</script>"""


class Browser:
    """Chromium without a window, a profile of its own and no network to ask."""

    FLAGS = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
    )  # fmt: skip

    def __init__(self, program: str, home: Path) -> None:
        self.program, self.home = program, home

    def __call__(self, page: Path, *flags: str) -> str:
        profile = f"--user-data-dir={self.home / 'profile'}"
        done = subprocess.run(
            [self.program, *self.FLAGS, profile, *flags, page.as_uri()],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout

    def picture(self, page: Path, width: int, height: int, dark: bool) -> tuple[int, int, int]:
        """Take a screenshot beside the page; its width, height and the ground's brightness."""
        shot = page.with_suffix(f".{width}{'.dark' if dark else ''}.png")
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        self(page, scheme, f"--window-size={width},{height}", f"--screenshot={shot}")
        data = shot.read_bytes()
        wide, high = struct.unpack(">II", data[16:24])
        pixels = zlib.decompress(b"".join(_chunks(data, b"IDAT")))
        return wide, high, sum(pixels[1:4]) // 3  # the first pixel has no neighbour to differ from


def _chunks(data: bytes, kind: bytes) -> list[bytes]:
    """A PNG's chunks of a kind."""
    found, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == kind:
            found.append(data[at + 8 : at + 8 + size])
        at += size + 12
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
                          ), None)  # fmt: skip
    if program is None:
        pytest.skip("no Chromium here to look at the page with")
    return Browser(program, tmp_path_factory.mktemp("browser"))


def test_in_a_browser_nothing_sticks_out_or_is_cut_at_a_telephone_s_and_a_desk_s_width(
    browser: Browser, tmp_path: Path
) -> None:
    reports = {
        "full": run_page(full_report(), nights(30)),
        "failed": run_page(full_report(outcome=f"TableError: {TABLE * 2} is away"), nights(1)),
        "empty": run_page(asdict(RunReport("r", TABLE, {}, {})), []),
    }
    frames = "".join(
        f'<iframe style="width:{width}px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for page in reports.values()
        for width in (390, 1_200)
    )
    (tmp_path / "measure.html").write_text(MEASURE.format(frames=frames), encoding="utf-8")
    dom = browser(tmp_path / "measure.html", "--window-size=1400,900", "--dump-dom")
    told = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert told
    found = json.loads(html.unescape(told[1]))
    assert [one["width"] for one in found] == [390, 1_200] * 3
    for one in found:
        assert one["scroll"] == one["width"], one
        assert (one["wide"], one["cut"], one["small"]) == ([], [], 0)
    assert [one["plots"] for one in found] == [6, 6, 6, 6, 0, 0]


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1_200, True)])
def test_a_screenshot_is_light_or_dark_as_the_reader_s_system_is(
    browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    page = tmp_path / "report.html"
    page.write_text(run_page(full_report(), nights(30)), encoding="utf-8")
    wide, high, brightness = browser.picture(page, width, 3_000, dark)
    assert (wide, high) == (width, 3_000)
    assert brightness < 60 if dark else brightness > 240
