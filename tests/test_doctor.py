"""`python -m stella_ray doctor`: a verdict a line, on this machine and on broken ones."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stella_ray import doctor
from tests.conftest import S3Place


def told(*arguments: str, **environment: str) -> tuple[int, list[str], str]:
    """Exit code, lines and standard error of a doctor of its own."""
    usual = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "stella_ray", "doctor", *arguments],
        env=usual | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_a_whole_machine_has_a_verdict_a_line_and_nothing_to_mend(
    tiny_encoder: Path, s3: S3Place
) -> None:
    code, lines, _ = told(
        "--encoder", str(tiny_encoder), "--s3", s3.uri,
        "--storage.endpoint_url", s3.endpoint_url,
    )  # fmt: skip
    assert code == 0
    assert lines[-1] == "all jobs can run"
    assert {line[:5] for line in lines[:-1]} <= {"ok   ", "note "}
    for part in (
        f"Python {sys.version.split()[0]}",
        f"pyarrow {importlib.metadata.version('pyarrow')}",
        "CPU: ",
        f"encoder {tiny_encoder}: a folder here",
        f"S3: {s3.uri} can be listed, written under conditions and deleted from",
        "Ray: RAY_ADDRESS isn't set",
        "disk: ",
        "open files: ",
    ):
        assert sum(part in line for line in lines) == 1, part


def test_what_is_silent_or_gone_is_bad_and_the_rest_is_still_told() -> None:
    """Ray's address takes connections and says nothing; nobody listens where the hub should be."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code, lines, _ = told(
            "--encoder", "someone/some-encoder",
            RAY_ADDRESS=address, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0",
            HF_TOKEN="hf_not_to_be_shown",
        )  # fmt: skip
    assert code == 2
    bad = [line for line in lines if line.startswith("bad")]
    assert len(bad) == 2
    assert bad[0].startswith("bad  hub: http://127.0.0.1:9 doesn't give someone/some-encoder (")
    assert "Connection refused" in bad[0]
    assert bad[1].startswith("bad  Ray: ")
    assert "RAY_ADDRESS" in bad[1]
    assert any(line.startswith("ok   stella-ray") for line in lines)
    assert lines[-1] == "2 to mend"
    assert "hf_not" not in "".join(lines)


def test_a_store_that_refuses_is_bad(s3: S3Place, tiny_encoder: Path) -> None:
    code, lines, _ = told(
        "--encoder", str(tiny_encoder), "--s3", "s3://no-such-bucket-here/tables",
        "--storage.endpoint_url", s3.endpoint_url,
    )  # fmt: skip
    assert code == 2
    assert [line for line in lines if line.startswith("bad  S3: ") and "no-such-bucket" in line]


def test_versions_out_of_range_or_missing_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def other(name: str) -> str:
        if name == "lancedb":
            raise importlib.metadata.PackageNotFoundError(name)
        return "2.9.1" if name == "torch" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", other)
    bad = [line for verdict, line in doctor.versions() if verdict == "bad"]
    assert len(bad) == 2
    assert bad[0].startswith("torch 2.9.1, expected >=2.10;")
    assert bad[1].startswith("lancedb is missing, expected ")


@pytest.mark.parametrize(
    ("encoder", "verdict", "part"),
    [
        ("multilingual-e5-small", "ok", "bundled"),
        ("./nowhere", "bad", "no such folder"),
        ("owner", "bad", "no such folder"),
        ("{empty}", "bad", "no config.json"),
    ],
)
def test_an_encoder_that_is_not_there_is_bad(
    tmp_path: Path, encoder: str, verdict: str, part: str
) -> None:
    ((found, line),) = doctor.encoder(encoder.format(empty=tmp_path))
    assert found == verdict
    assert part in line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "found nothing, expected a command"),
        (["docter"], "found 'docter', expected a command"),
        (["doctor", "--s3", "bucket"], "expected s3://BUCKET/FOLDER"),
        (["doctor", "--encodr", "x"], "did you mean --encoder?"),
    ],
)
def test_bad_arguments_get_one_line(arguments: list[str], part: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stella_ray", *arguments],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert part in done.stderr
    assert done.stderr.count("\n") == 1
