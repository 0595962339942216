"""`--help` of every job: grouped, a reason for each setting, no wait for what it doesn't use."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("[a-z]*.py"))
HEAVY = ["torch", "transformers", "ray.data", "ray.train", "lancedb", "mteb", "sklearn"]
"""Half a second to five seconds each."""

ALL_HELPS = """
import contextlib, io, json, runpy, sys
helps = {}
for job in sys.argv[1].split(","):
    sys.argv = [f"jobs/{job}.py", "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")
    helps[job] = out.getvalue()
print(json.dumps({"helps": helps, "loaded": list(sys.modules)}))
"""


@pytest.fixture(scope="module")
def told() -> Any:
    """What all helps print, and the modules that they loaded, in one process for all."""
    done = subprocess.run(
        [sys.executable, "-c", ALL_HELPS, ",".join(JOBS)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_no_help_waits_for_a_library_that_it_does_not_use(told: Any) -> None:
    assert {"embed", "search", "train", "evaluate"} <= set(JOBS)
    assert not set(HEAVY) & set(told["loaded"])


def settings_of(text: str) -> dict[str, str]:
    """Each setting of a help with what is said of it."""
    parts = re.split(r"^  ARG:   --", text.split("\noptions:\n")[1], flags=re.M)[1:]
    said = {}
    for part in parts:
        name, _, rest = part.partition("\n")
        rest = re.sub(r"^  ENV: .*\n", "", re.split(r"^\S", rest, flags=re.M)[0], flags=re.M)
        said[re.split(r"[ ,]", name)[0]] = " ".join(rest.split())
    return said


@pytest.mark.parametrize("job", JOBS)
def test_every_setting_has_a_reason_a_type_and_a_default(told: Any, job: str) -> None:
    settings = settings_of(told["helps"][job])
    values = {k: v for k, v in settings.items() if "Path to a configuration file" not in v}
    values = {k: v for k, v in values.items() if k not in {"config", "print_config"}}
    values = {k: v for k, v in values.items() if not k.endswith(".help")}  # of a list's items
    assert values
    for name, said in values.items():
        assert re.fullmatch(r"\S.{9,} \((required, )?type: .+?(, default: .*)?\)", said), (
            name,
            said,
        )
        assert "required" in said or "default:" in said, (name, said)


@pytest.mark.parametrize("job", JOBS)
def test_settings_of_one_kind_stand_under_a_heading_of_their_own(told: Any, job: str) -> None:
    text = told["helps"][job]
    groups = re.split(r"^(\S.*:)\n(?=  ARG)", text.split("\noptions:\n")[1], flags=re.M)
    for heading, body in zip(groups[1::2], groups[2::2], strict=True):
        names = re.findall(r"^  ARG:   --(\w+)(\.?)(?!help)", body, re.M)
        nested = {name for name, dot in names if dot}
        assert len(nested) <= 1, (heading, nested)
        assert len(heading) > 20, heading
