"""A real server of chat completions on loopback, which a test tells how to behave."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


def said(content: str | None, finish: str = "stop", **more: Any) -> Reply:
    """An answer in the words of OpenAI's API."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    usage = {"prompt_tokens": 700, "completion_tokens": 20}
    answer = {"choices": [{**choice, "finish_reason": finish}], "usage": usage, **more}
    return 200, {}, json.dumps(answer).encode()


def refused(status: int, message: str = "no", **headers: str) -> Reply:
    return status, headers, json.dumps({"error": {"message": message}}).encode()


def good(body: dict[str, Any], **more: Any) -> Reply:
    """A question or sentence of its own for each span: characters of it, backwards."""
    words = body["messages"][1]["content"]
    kind = "question" if '"question"' in words else "sentence"
    span = re.split("要问的部分：\n|要改写的句子：\n", words)[1]
    made = span.strip("。\n")[:14][::-1] + "怎样了"
    return said(json.dumps({kind: made}, ensure_ascii=False), **more)


class ChatServer:
    """Answers by `behave(number of the request, its body)`; keeps what it was asked."""

    def __init__(self, behave: Callable[[int, dict[str, Any]], Reply] | None = None) -> None:
        self.behave = behave or (lambda _, body: good(body))
        self.asked: list[dict[str, Any]] = []
        self.answered: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        chat = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with chat._lock:
                    number = len(chat.asked)
                    chat.asked.append(body)
                    chat.headers.append(dict(self.headers))
                status, headers, answer = chat.behave(number, body)
                if status == 200:
                    with chat._lock:
                        chat.answered.append(json.dumps(body, sort_keys=True))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:  # a client that went away while it waited
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def stall(self) -> Reply:
        """Say nothing until the test is over."""
        self.closing.wait(30)
        return refused(500)

    def __enter__(self) -> ChatServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
