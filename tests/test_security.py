"""SECURITY.md: each claim names the tests that hold it, and they exist; the rest is held here."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stella_ray import Encoder

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
CLAIMS = re.findall(r"^\| (?P<claim>[^|]+) \| (?P<tests>`tests/[^|]+) \|$", PAGE, re.M)
SOURCES = sorted([*(ROOT / "stella_ray").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


@pytest.mark.parametrize(("claim", "tests"), CLAIMS, ids=[claim[:60] for claim, _ in CLAIMS])
def test_a_claim_names_tests_that_exist(claim: str, tests: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
    assert len(named) == tests.count("`") // 2, f"{claim}: a test is not written as `file::name`"
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_every_row_of_the_page_is_a_claim_with_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    assert len(CLAIMS) == len(rows) - 1 > 12  # one is the head


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call with its function's dotted name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def dangers(source: str) -> list[str]:
    """What would run, unpickle or trust what a user's file says."""
    found = []
    for name, call in calls(source):
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in ("eval", "exec", "compile", "__import__", "os.system"):
            found.append(name)
        if re.search(r"^(c?[Pp]ickle|dill|cloudpickle|joblib|marshal|shelve)\.", name):
            found.append(name)
        if name == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
        if name == "yaml.load" or (name == "np.load" and "allow_pickle" in given):
            found.append(name)
        if given.get("shell") == "True" or given.get("trust_remote_code") == "True":
            found.append(f"{name}: {given}")
        if name.endswith(".from_pretrained") and given.get("trust_remote_code") != "False":
            found.append(f"{name} without trust_remote_code=False")
        if name.endswith(".extractall") or name.endswith("unpack_archive"):
            found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_unpickles_or_unpacks_what_a_file_says(path: Path) -> None:
    assert dangers(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(path)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
        "tarfile.open(path).extractall(folder)",
    ],
)
def test_the_look_at_the_sources_finds_what_it_looks_for(source: str) -> None:
    assert dangers(source)


def test_the_only_filter_that_is_written_here_holds_numbers() -> None:
    written = [
        (str(path.relative_to(ROOT)), name, ast.unparse(value))
        for path in SOURCES  # Lance is imported in table alone
        if path.parent.name == "table"
        for name, call in calls(path.read_text("utf-8"))
        for word, value in [("", each) for each in call.args]
        + [(keyword.arg or "", keyword.value) for keyword in call.keywords]
        if isinstance(value, (ast.JoinedStr, ast.BinOp))
        and (word in ("filter", "where") or re.search(r"\.(delete|where|filter|count_rows)$", name))
    ]
    assert [one[0] for one in written] == ["stella_ray/table/vectors.py"]
    assert "_rowaddr IN" in written[0][2]


def test_code_in_a_model_folder_is_not_run(tiny_encoder: Path, tmp_path: Path) -> None:
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(tiny_encoder, folder)
    for name in ("modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n", "utf-8")
    maps: dict[str, dict[str, Any]] = {
        "config.json": {"AutoConfig": "modeling_own.Own", "AutoModel": "modeling_own.Own"},
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_own.Own"] * 2},
    }
    for file, entry in maps.items():
        told = json.loads((folder / file).read_text("utf-8"))
        (folder / file).write_text(json.dumps(told | {"auto_map": entry}), "utf-8")
    found = Encoder(str(folder)).embed(["今天天气很好"])
    assert (found == Encoder(str(tiny_encoder)).embed(["今天天气很好"])).all()
    assert not ran.exists()
