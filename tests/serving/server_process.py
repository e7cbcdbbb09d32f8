"""A server as a process of its own, as a user starts it, and clients that wait in threads."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
EMULATED = ("--emulate", "roofline:t4:qwen2.5-0.5b")


@contextmanager
def server(*flags: str, engine: Sequence[str] = EMULATED) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of its own, and its address; what is left of it is killed."""
    command = [sys.executable, str(ROOT / "api_server.py"), "--port", "0", *engine, *flags]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            address = next((found[0] for line in lines if (found := re.search(r"http://\S+", line))), None)
            assert address is not None
            yield process, address
        finally:
            process.kill()


def children(pid: int) -> list[str]:
    """The ids of the processes that ``pid`` has started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


class Stream(threading.Thread):
    """A client that reads a stream to its end."""

    def __init__(self, url: str, tokens: int) -> None:
        super().__init__()
        self._url = url
        self._body = {"prompt": "a", "max_tokens": tokens, "ignore_eos": True}
        self.begun = threading.Event()
        self.text = ""
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", f"{self._url}/generate_stream", json=self._body, timeout=60) as answer:
            for piece in answer.iter_text():
                self.text += piece
                self.begun.set()


class Whole(threading.Thread):
    """A client that waits for an answer as a whole."""

    def __init__(self, url: str, tokens: int) -> None:
        super().__init__()
        self._url = url
        self._body = {"prompt": "a", "max_tokens": tokens, "ignore_eos": True}
        self.answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self.answer = httpx.post(f"{self._url}/generate", json=self._body, timeout=60)
