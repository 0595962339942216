"""An OpenAI-compatible endpoint: requests in, answers out, patient with its failures.

aiohttp does the talking, since s3fs and Ray bring it along and one process can wait for many
answers with it. The key is read from the environment of the process that asks, like AWS's.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from stella_ray.errors import SettingsError
from stella_ray.learn.asking import AskSettings, Request, body

KEY = "OPENAI_API_KEY"

MOST_BYTES = 4 << 20
"""Of an answer; a longer one is no answer."""

AGAIN = (408, 409, 425, 429)
"""Statuses, besides 5xx, after which the same request may succeed."""

FATAL = {
    401: f"it refuses the key; set {KEY}, on a cluster on every node",
    403: f"it refuses the key; check {KEY} and what it may do",
    404: "check --endpoint (it ends in /v1, mostly) and --ask.model",
    405: "check --endpoint (it ends in /v1, mostly)",
}


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """How patient the asking is."""

    concurrency: int = 16
    """Requests in flight, over all askers."""
    timeout_seconds: float = 120.0
    """Seconds for a whole answer; a server that stalls longer is asked again."""
    tries: int = 6
    """Times a request is sent, in all, after 408, 409, 425, 429, 5xx, a dropped or stalled
    connection, and an answer that is none."""
    backoff_seconds: float = 1.0
    """Before the second try; doubled before each further one. Retry-After may say more."""
    longest_wait_seconds: float = 120.0
    """Between two tries at most, whatever Retry-After says."""
    give_up_after: int = 10
    """Requests in a row that failed for good, after which the endpoint counts as gone."""

    def __post_init__(self) -> None:
        """Refuse what can't hold."""
        for name in ("concurrency", "tries", "give_up_after"):
            if getattr(self, name) < 1:
                raise SettingsError(
                    f"client.{name} {getattr(self, name)} is too small; expected 1 or more"
                )
        for name in ("timeout_seconds", "backoff_seconds", "longest_wait_seconds"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"client.{name} {getattr(self, name)} must be above 0")

    def longest_window(self, rows: int) -> float:
        """Seconds that so many requests can take, each of them tried as often as may be."""
        return (
            -(-rows // self.concurrency)
            * self.tries
            * (self.timeout_seconds + self.longest_wait_seconds)
        )


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        key: the request's.
        raw: the model's words; None where there are none, and then `failure` says why.
        finish: the server's finish_reason.
        prompt_tokens: as the server counts them, else the characters sent.
        completion_tokens: likewise, of the answer.
        counted: whether the server counted.
        tries: how often it was sent; 0 where the endpoint was given up before.
        seconds: from the first try to the last answer.
        failure: in one line.
        fatal: nobody's requests can succeed.
        gave_up: the client has given the endpoint up with this one, or before.
    """

    key: str
    raw: str | None = None
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = False
    tries: int = 0
    seconds: float = 0.0
    failure: str | None = None
    fatal: bool = False
    gave_up: bool = False


def chat_url(endpoint: str) -> str:
    """Where chat completions are asked for.

    Raises:
        SettingsError: it isn't an address, or holds credentials.
    """
    parts = urlsplit(endpoint)
    if parts.username or parts.password or parts.query:
        raise SettingsError(
            f"--endpoint holds credentials or a query; leave them out, and set {KEY} instead"
        )
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise SettingsError(
            f"--endpoint {endpoint} isn't an address; expected http://HOST:PORT/v1 or the like"
        )
    whole = endpoint.rstrip("/")
    return whole if whole.endswith("/chat/completions") else f"{whole}/chat/completions"


@dataclass(frozen=True)
class Fault:
    """Why one try failed; `wait` is what the server asks for, in seconds."""

    words: str
    again: bool = True
    fatal: bool = False
    wait: float = 0.0


class Client:
    """Asks one endpoint; once it has given up, it answers everything with the reason at once."""

    def __init__(self, url: str, ask: AskSettings, settings: ClientSettings) -> None:
        self.url = url
        self.ask = ask
        self.settings = settings
        self.failed_in_a_row = 0
        self.gave_up: Answer | None = None

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """Ask all of them, so many at a time as the settings say; in their order."""
        return asyncio.run(self._answers(requests))

    async def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        own = self.settings
        key = os.environ.get(KEY)
        gate = asyncio.Semaphore(own.concurrency)
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=aiohttp.ClientTimeout(total=own.timeout_seconds),
            connector=aiohttp.TCPConnector(limit=own.concurrency),
        ) as session:

            async def one(request: Request) -> Answer:
                async with gate:
                    return await self._answer(session, request)

            return list(await asyncio.gather(*map(one, requests)))

    async def _answer(self, session: aiohttp.ClientSession, request: Request) -> Answer:
        own, began, fault = self.settings, time.monotonic(), Fault("")
        for number in range(own.tries):
            if number:
                await asyncio.sleep(self._wait(number, fault.wait))
            if self.gave_up is not None:
                return replace(self.gave_up, key=request.key, tries=number)
            found = await self._try(session, request)
            spent = round(time.monotonic() - began, 3)
            if isinstance(found, Answer):
                self.failed_in_a_row = 0
                return replace(found, tries=number + 1, seconds=spent)
            fault = found
            if not fault.again:
                break
        self.failed_in_a_row += 1
        failed = Answer(
            request.key, tries=number + 1, seconds=spent, failure=fault.words, fatal=fault.fatal
        )
        if fault.fatal or self.failed_in_a_row >= own.give_up_after:
            failed = replace(failed, gave_up=True)
            self.gave_up = self.gave_up or failed
        return failed

    def _wait(self, number: int, asked: float) -> float:
        own = self.settings.backoff_seconds * 2.0 ** (number - 1)
        # A little apart, so that requests that failed together don't come back together.
        wait = max(asked, own * random.uniform(0.5, 1.0))
        return min(wait, self.settings.longest_wait_seconds)

    async def _try(self, session: aiohttp.ClientSession, request: Request) -> Answer | Fault:
        asked = body(request, self.ask)
        try:
            async with session.post(self.url, json=asked, allow_redirects=False) as response:
                told = bytearray()
                async for piece in response.content.iter_chunked(1 << 16):
                    told += piece
                    if len(told) > MOST_BYTES:
                        return Fault(f"an answer of more than {MOST_BYTES:,} bytes")
                if response.status == 200:
                    return _read(request.key, bytes(told), asked)
                return _refusal(response, bytes(told))
        except (asyncio.TimeoutError, TimeoutError):
            return Fault(f"no answer within {self.settings.timeout_seconds:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return Fault(_line(f"{type(error).__name__}: {error}"))


def _refusal(response: aiohttp.ClientResponse, told: bytes) -> Fault:
    status, text = response.status, told[:2_000].decode("utf-8", "replace")
    try:
        found = orjson.loads(told)
        found = found.get("error", found) if isinstance(found, dict) else found
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except orjson.JSONDecodeError:
        pass
    words = _line(f"{status} {response.reason or ''}: {text}")
    if status in FATAL or 300 <= status < 400:
        hint = FATAL.get(status, f"it has moved to {response.headers.get('Location', '?')}")
        return Fault(f"{words}; {hint}", again=False, fatal=True)
    again = status in AGAIN or status >= 500
    return Fault(words, again=again, wait=_seconds(response.headers.get("Retry-After")))


def _read(key: str, told: bytes, asked: dict[str, Any]) -> Answer | Fault:
    """An answer in the words of OpenAI's API; a fault where it is none."""
    try:
        found = orjson.loads(told)
        choice = found["choices"][0]
        raw, finish = choice["message"].get("content"), str(choice.get("finish_reason") or "stop")
    except (ValueError, LookupError, TypeError, AttributeError):
        return Fault(_line(f"no answer of a chat: {told[:200].decode('utf-8', 'replace')}"))
    cut = finish in ("length", "content_filter")
    if not cut and not (isinstance(raw, str) and raw.strip()):
        return Fault("an empty answer")
    raw = raw if isinstance(raw, str) else ""
    usage = found.get("usage")
    counts = [
        usage.get(name) if isinstance(usage, dict) else None
        for name in ("prompt_tokens", "completion_tokens")
    ]
    counted = all(isinstance(count, int) and count >= 0 for count in counts)
    sent = sum(len(message["content"]) for message in asked["messages"])
    return Answer(
        key,
        raw=raw,
        finish=finish,
        prompt_tokens=int(counts[0] or 0) if counted else sent,
        completion_tokens=int(counts[1] or 0) if counted else len(raw),
        counted=counted,
    )


def _seconds(told: str | None) -> float:
    """What Retry-After asks for: seconds, or a date."""
    if not told:
        return 0.0
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(told)
    except ValueError:
        return 0.0
    until = until if until.tzinfo else until.replace(tzinfo=timezone.utc)
    return max(0.0, (until - datetime.now(timezone.utc)).total_seconds())


def _line(text: str) -> str:
    """One line without the key, which some servers repeat."""
    key = os.environ.get(KEY)
    text = " ".join(text.split())[:300]
    return text.replace(key, "…") if key else text
