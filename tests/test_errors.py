"""How a job ends: its exit code, and one line or a traceback."""

from __future__ import annotations

import pytest

from stella_ray.errors import (
    CorpusError,
    IncompleteRun,
    ModelError,
    ModelMismatch,
    SettingsError,
    StellaError,
    TableError,
    stella_error_in,
)
from stella_ray.settings import run_job


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (StellaError, 1), (SettingsError, 2), (CorpusError, 3), (ModelError, 4),
        (ModelMismatch, 4), (TableError, 5), (IncompleteRun, 6),
    ],
)  # fmt: skip
def test_each_error_of_a_person_ends_a_job_with_one_line_and_its_code(
    kind: type[StellaError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def plain() -> None:
        raise kind("what it is")

    def wrapped() -> None:
        try:
            plain()
        except kind as error:
            raise RuntimeError("a worker failed") from error

    def kept_as_ray_keeps_it() -> None:
        error = RuntimeError("a task failed")
        error.cause = kind("what it is")  # type: ignore[attr-defined]
        raise error

    def told_as_ray_data_tells_it() -> None:
        raise RuntimeError(f"a task failed\n  stella_ray.errors.{kind.__name__}: what it is\n")

    mains = [plain, wrapped, kept_as_ray_keeps_it]
    if kind is not StellaError:  # the root is never raised itself
        mains.append(told_as_ray_data_tells_it)
    for main in mains:
        with pytest.raises(SystemExit) as ended:
            run_job(main)
        assert ended.value.code == code
        assert capsys.readouterr().err == "error: what it is\n"


@pytest.mark.parametrize(
    ("error", "code", "said"), [(ZeroDivisionError("bug"), 1, "Traceback"),
                                (KeyboardInterrupt(), 130, "interrupted")]
)  # fmt: skip
def test_a_bug_shows_its_traceback_and_an_interrupt_does_not(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_job(main)
    words = capsys.readouterr().err
    assert ended.value.code == code
    assert said in words
    assert ("Traceback" in words) == (code == 1)


def test_a_job_that_went_well_ends_with_zero() -> None:
    with pytest.raises(SystemExit) as ended:
        run_job(lambda: None)
    assert ended.value.code == 0


def test_errors_that_name_each_other_in_a_ring_end_the_search() -> None:
    one, two = RuntimeError("1"), RuntimeError("2")
    one.__cause__, two.__cause__ = two, one
    assert stella_error_in(one) is None
    assert stella_error_in(None) is None
