"""The client against a real server that fails, stalls and answers nonsense."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest

from stella_ray.errors import SettingsError
from stella_ray.learn.asking import AskSettings, Request, requests_about
from stella_ray.pipeline.endpoint import Answer, Client, ClientSettings, _seconds, chat_url
from tests.chat import ChatServer, Reply, good, refused, said
from tests.learn.test_asking import document

ASK = AskSettings(model="m")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as chat:
        yield chat


def requests(count: int) -> list[Request]:
    return [next(iter(requests_about(str(n), document(n, 8), ASK)))[2] for n in range(count)]


def client(server: ChatServer, **more: Any) -> Client:
    quick = {"timeout_seconds": 0.3, "backoff_seconds": 0.01, "concurrency": 1, **more}
    return Client(chat_url(server.endpoint), ASK, ClientSettings(**quick))


def test_an_answer_comes_with_its_words_and_tokens(server: ChatServer):
    one = requests(1)[0]
    [answer] = client(server).answers([one])
    assert answer.key == one.key
    span = one.passage[one.start : one.end].strip("。")
    assert answer.raw == f'{{"{one.kind}": "{span[:14][::-1]}怎样了"}}'
    assert (answer.prompt_tokens, answer.completion_tokens, answer.counted) == (700, 20, True)
    assert (answer.finish, answer.tries, answer.failure) == ("stop", 1, None)
    assert server.asked[0]["model"] == "m"
    assert server.asked[0]["seed"] == one.seed


def test_what_may_pass_is_asked_again_until_it_is_answered(server: ChatServer):
    trouble: list[Any] = [
        lambda: refused(500), lambda: refused(429), server.stall,
        lambda: (200, {}, b"<html>busy</html>"), lambda: (200, {}, b'{"choices": []}'),
        lambda: (200, {}, b'{"choices": [{"message": null}]}'), lambda: (200, {}, b"[]"),
        lambda: said(None), lambda: said("  "), lambda: refused(408),
    ]  # fmt: skip
    server.behave = lambda n, body: trouble[n]() if n < len(trouble) else good(body)
    [answer] = client(server, tries=len(trouble) + 1, longest_wait_seconds=0.02).answers(
        requests(1)
    )
    assert answer.raw is not None
    assert answer.tries == len(server.asked) == len(trouble) + 1


def test_a_dropped_connection_is_asked_again(server: ChatServer):
    def behave(number: int, body: dict[str, Any]) -> Reply:
        if number == 0:
            raise ConnectionAbortedError
        return good(body)

    server.behave = behave
    assert client(server).answers(requests(1))[0].tries == 2
    gone = Client("http://127.0.0.1:9/v1/chat/completions", ASK, client(server, tries=2).settings)
    [answer] = gone.answers(requests(1))
    assert answer.raw is None
    assert "ClientConnectorError" in (answer.failure or "")


def test_retry_after_is_waited_for_up_to_the_longest_wait(server: ChatServer):
    server.behave = lambda n, body: refused(429, **{"Retry-After": "0.4"}) if n == 0 else good(body)
    began = time.monotonic()
    assert client(server).answers(requests(1))[0].tries == 2
    assert time.monotonic() - began >= 0.4
    server.asked.clear()
    server.behave = lambda n, body: refused(503, **{"Retry-After": "900"}) if n == 0 else good(body)
    assert client(server, longest_wait_seconds=0.1).answers(requests(1))[0].tries == 2
    later = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    assert 55 < _seconds(later) <= 60
    assert _seconds("soon") == _seconds(None) == 0


def test_an_answer_that_was_cut_off_is_one(server: ChatServer):
    server.behave = lambda n, body: said(None, finish="length")
    [answer] = client(server).answers(requests(1))
    assert (answer.raw, answer.finish, answer.tries) == ("", "length", 1)


def test_tokens_that_the_server_does_not_count_are_taken_from_characters(server: ChatServer):
    server.behave = lambda n, body: said("五个字符吧", usage=None)
    [answer] = client(server).answers(requests(1))
    sent = sum(len(message["content"]) for message in server.asked[0]["messages"])
    assert (answer.prompt_tokens, answer.completion_tokens, answer.counted) == (sent, 5, False)


def test_a_request_that_is_refused_itself_is_not_asked_again_and_stops_no_other(server: ChatServer):
    server.behave = lambda n, body: refused(400, "too long") if n == 0 else good(body)
    first, second = client(server).answers(requests(2))
    assert (first.failure, first.tries, first.gave_up) == ("400 Bad Request: too long", 1, False)
    assert second.raw is not None


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "--ask.model"), (308, "moved to /x")],
)
def test_what_no_try_can_mend_stops_everything_at_once(status: int, says: str, server: ChatServer):
    server.behave = lambda n, body: refused(status, Location="/x")
    answers = client(server).answers(requests(5))
    assert len(server.asked) == 1
    assert all(answer.fatal and answer.gave_up for answer in answers)
    assert says in (answers[0].failure or "")


def test_after_enough_failures_in_a_row_nothing_more_is_asked(server: ChatServer):
    """Failures that stand alone don't count."""
    server.behave = lambda n, body: refused(500, "out of order") if n not in (2, 3) else good(body)
    own = client(server, tries=2, give_up_after=3)
    answers = own.answers(requests(9))
    # Each but the second and third is tried twice: 0 fails, 1 and 2 are answered, 3 to 5 fail.
    assert [answer.tries for answer in answers] == [2, 1, 1, 2, 2, 2, 0, 0, 0]
    assert [answer.gave_up for answer in answers] == [False] * 5 + [True] * 4
    assert len(server.asked) == 10
    assert own.answers(requests(2))[1].failure == "500 Internal Server Error: out of order"
    assert len(server.asked) == 10


def test_so_many_requests_are_in_flight(server: ChatServer):
    import threading

    together = threading.Barrier(4, timeout=5)

    def behave(number: int, body: dict[str, Any]) -> Reply:
        together.wait()  # breaks unless four are here at once
        return good(body)

    server.behave = behave
    answers = client(server, concurrency=4, timeout_seconds=10).answers(requests(8))
    assert all(answer.tries == 1 for answer in answers)


def test_the_key_goes_to_the_server_and_nowhere_else(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    server.behave = lambda n, body: refused(401, "bad key sk-very-secret")
    [answer] = client(server).answers(requests(1))
    assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "bad key …" in (answer.failure or "")
    assert "secret" not in str(asdict(answer)) + str(server.asked)
    monkeypatch.delenv("OPENAI_API_KEY")
    client(server).answers(requests(1))
    assert "Authorization" not in server.headers[1]


def test_an_answer_without_end_is_none(server: ChatServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("stella_ray.pipeline.endpoint.MOST_BYTES", 1_000)
    server.behave = lambda n, body: said("长" * 2_000)
    [answer] = client(server, tries=1).answers(requests(1))
    assert "more than 1,000 bytes" in (answer.failure or "")
    assert answer == Answer(answer.key, tries=1, seconds=answer.seconds, failure=answer.failure)


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://me:pass@host/v1", "credentials"),
        ("http://host/v1?key=abc", "credentials"),
        ("host:8000/v1", "isn't an address"),
    ],
)
def test_addresses_that_cannot_be_are_refused(endpoint: str, says: str):
    with pytest.raises(SettingsError, match=says) as refusal:
        chat_url(endpoint)
    assert "pass@" not in str(refusal.value)
    assert chat_url("http://h/v1/") == chat_url("http://h/v1/chat/completions")
