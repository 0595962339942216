"""Settings as people give them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from stella_ray.errors import SettingsError
from stella_ray.settings import in_submitted_job, read_settings, refuse_relative, shown

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Pool:
    """How wide."""

    rows_per_commit: int = 1000
    """Rows between two commits."""
    name: str = "p"

    def __post_init__(self) -> None:
        if self.rows_per_commit <= 0:
            raise SettingsError(f"pool.rows_per_commit {self.rows_per_commit} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Which one."""

    prefix: str | None = None
    token_budget: int = 0
    max_tokens: int | None = None
    name: str = "e"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Do the work.

    At night.
    """

    corpus: list[str]
    """Shards."""
    table: str
    """DIR/NAME."""
    keep_columns: list[str] = field(default_factory=list)
    kind: Literal["float32", "float16"] = "float32"
    rebuild: bool = False
    max_share: float = 0.2
    report: str | None = None
    pool: Pool = field(default_factory=Pool)
    encoder: Encoder = field(default_factory=Encoder)

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise SettingsError(f"max_share {self.max_share} is no share; expected 0 to 1")


def read(*words: str) -> Job:
    return read_settings(Job, words)


def read_more(*words: str) -> Job:
    return read("--corpus", "a", "--table", "d/t", *words)


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def go(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"STELLA_RAY_{name}", value)

    return go


# ---------------------------------------------------------------- what people type


@pytest.mark.parametrize(
    ("words", "corpus"),
    [
        (["--corpus", "a", "b c", "中文"], ["a", "b c", "中文"]),
        (["--corpus", '["a", "b"]'], ["a", "b"]),
        (['--corpus=["a", "b"]'], ["a", "b"]),
        (["--corpus=a"], ["a"]),
        (["--corpus", "2024", "null", "true"], ["2024", "null", "true"]),
        (["--corpus", "[1].jsonl"], ["[1].jsonl"]),
        (["--corpus", "a: {b}", "#c"], ["a: {b}", "#c"]),
        (["--corpus"], []),
    ],
)
def test_a_list_is_words_or_json(words: list[str], corpus: list[str]) -> None:
    assert read(*words, "--table", "d/t").corpus == corpus
    assert read("--table", "d/t", *words).corpus == corpus


@pytest.mark.parametrize(
    "words",
    [
        ["--pool.rows_per_commit", "5"],
        ["--pool.rows_per_commit=5"],
        ["--rows_per_commit", "5"],
        ["--rows_per_commit=5"],
        ["--rows-per-commit", "5"],
        ["--pool.rows-per-commit=5"],
    ],
)
def test_a_nested_setting_has_a_short_name_and_dashes_will_do(words: list[str]) -> None:
    assert read_more(*words).pool.rows_per_commit == 5


def test_a_short_name_that_two_settings_share_is_refused() -> None:
    with pytest.raises(SettingsError, match="unknown setting --name"):
        read_more("--name", "x")
    assert read_more("--pool.name", "x").pool.name == "x"


@pytest.mark.parametrize(
    "text", ["query: ", "查询: ", "", "{a}", "[b]", " x", "0123", "1e10", "a#b"]
)
def test_text_stays_as_typed_whatever_yaml_would_make_of_it(text: str) -> None:
    assert read_more("--prefix", text).encoder.prefix == text
    assert read_more(f"--encoder.prefix={text}").encoder.prefix == text


def test_a_switch_needs_no_value() -> None:
    assert read_more("--rebuild").rebuild
    assert read_more("--rebuild", "--max_share", "0.5").rebuild
    assert read_more("--rebuild", "true").rebuild
    assert not read_more("--rebuild=false").rebuild


def test_variables_fill_what_flags_leave_out(variables: Callable[..., None]) -> None:
    variables(CORPUS='["x"]', TABLE="e/t", POOL__ROWS_PER_COMMIT="7", MAX_SHARE="0.5")
    job = read("--max_share", "0.1")
    assert (job.corpus, job.table, job.pool.rows_per_commit) == (["x"], "e/t", 7)
    assert job.max_share == 0.1


def test_flags_win_over_a_preset_wherever_they_stand_and_presets_over_variables(
    tmp_path: Path, variables: Callable[..., None]
) -> None:
    preset, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    preset.write_text("corpus: [x, y]\ntable: p/t\npool: {rows_per_commit: 9, name: a}\n", "utf-8")
    second.write_text("pool: {name: b}\n", "utf-8")
    variables(TABLE="e/t", MAX_SHARE="0.5")
    job = read("--config", str(preset))
    assert (job.corpus, job.table, job.max_share) == (["x", "y"], "p/t", 0.5)
    assert read("--config", str(preset), "--rows_per_commit", "3").pool.rows_per_commit == 3
    assert read("--rows_per_commit", "3", "--config", str(preset)).pool.rows_per_commit == 3
    assert read("--corpus", "z", f"--config={preset}").corpus == ["z"]
    assert read("--config", str(preset), "--config", str(second)).pool == Pool(
        rows_per_commit=9, name="b"
    )


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tabel", "x"], "unknown setting --tabel; did you mean --table?"),
        (["--keep-colums", "x"], "unknown setting --keep_colums; did you mean --keep_columns?"),
        (["--rows_per_comit", "1"], "did you mean --pool.rows_per_commit?"),
        (["--zzz", "1"], "unknown setting --zzz; see --help"),
        (["--rows_per_commit", "many"], "Expected a int. Got value: many"),
        (["--rows_per_commit", "1.5"], "Expected a int. Got value: 1.5"),
        (["--rows_per_commit"], "expected one argument"),
        (["--rows_per_commit", "-1"], "pool.rows_per_commit -1 must be above 0"),
        (["--max_share", "2"], "max_share 2.0 is no share; expected 0 to 1"),
        (["--max_share", "half"], "Expected a float. Got value: half"),
        (["--kind", "int8"], "float16"),
        (["--rebuild", "maybe"], "Expected a bool. Got value: maybe"),
        (["stray"], "stray"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--config"], "expected one argument"),
    ],
)
def test_each_mistake_is_a_settings_error_of_one_line(words: list[str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_more(*words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(SettingsError, match=r"required: corpus, table$"):
        read()


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("tabel: x", "tabel"),
        ("pool: {rows_per_comit: 4}", "rows_per_comit"),
        ("pool: {rows_per_commit: x}", "Expected a int"),
        ("corpus: [x", "parsing"),
        ("max_share: 3", "is no share"),
    ],
)
def test_a_faulty_preset_is_a_settings_error_of_one_line(
    tmp_path: Path, preset: str, said: str
) -> None:
    path = tmp_path / "preset.yaml"
    path.write_text(preset + "\n", "utf-8")
    with pytest.raises(SettingsError) as caught:
        read_more("--config", str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shown_masks_secrets_and_nothing_else() -> None:
    @dataclass
    class Store:
        secret_access_key: str | None = "hush"
        password: str | None = None
        token_budget: int = 5

    @dataclass
    class Settings:
        max_tokens: int = 3
        aws_session_token: str = "hush"
        store: Store = field(default_factory=Store)

    assert shown(Settings()) == {
        "max_tokens": 3,
        "aws_session_token": "***",
        "store": {"secret_access_key": "***", "password": None, "token_budget": 5},
    }


# ---------------------------------------------------------------- paths


def test_relative_paths_are_refused_only_in_a_submitted_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    refuse_relative(table="vectors/docs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert in_submitted_job()
    refuse_relative(table="/vectors/docs", corpus="s3://bucket/x", report=None)
    with pytest.raises(SettingsError, match="--table vectors/docs is a relative path"):
        refuse_relative(table="vectors/docs")


# ---------------------------------------------------------------- what importing costs


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("module", ["stella_ray", "stella_ray.settings", "stella_ray.rows"])
def test_importing_the_base_imports_neither_torch_nor_ray(module: str) -> None:
    heavy = "{'torch', 'ray', 'lance', 'transformers'}"
    done = python("-c", f"import sys, {module}; sys.exit({heavy} & set(sys.modules) or 0)")
    assert done.returncode == 0, done.stderr


def test_help_shows_each_setting_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("docstring_parser", reason="comes with jsonargparse[signatures]")
    with pytest.raises(SystemExit) as ended:
        read("--help")
    words = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "Do the work." in words
    assert "At night" not in words
    for name, reason in (("pool.rows_per_commit", "Rows between two"), ("corpus", "Shards.")):
        assert re.search(rf"ARG: --{name} .*?{reason}", words), words
