"""What HTTP adds to an engine: streamed tokens a second, and the time to a first and to each further token.

    python benchmarks/server.py [--streams 256] [--requests 1024] [--pause-ms 100] [--costs COSTS[,COSTS]]

The load is the same twice: at the engine's process itself, through its client, and at ``api_server.py``, whose streams
a client of bare sockets reads in a process of its own. All of them share this machine. So many streams ask again after
they have their answer and a pause of up to ``--pause-ms``; outputs are 64 to 192 tokens, pauses and outputs by a seed.
Without a pause all questions would come within a millisecond after a step's end, where the next plan is made: who asks
at the engine itself may still be part of it, who comes through HTTP just not, and waits for a whole step. Steps take
what ``--costs`` say, or longer where this machine cannot keep up. On costs that are too fast for it, tokens a second
are what it can do at most, and the two rows are no pair: a client that falls behind is told several tokens at a time,
which is cheaper. On slower ones the times show what HTTP adds. Gaps are those between the news, or events, of a stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import uvloop  # noqa: E402

from engine.loop import undisturbed  # noqa: E402
from scheduler.request import Request, SamplingParams  # noqa: E402
from serving.arguments import parse_command  # noqa: E402
from serving.engine_client import EngineClient  # noqa: E402

PROMPT = tuple(range(1000, 1064))
#: faster than this machine, and two that it keeps up with
COSTS = "roofline:h100:qwen2.5-0.5b,h100-qwen-7b,h100-qwen2.5-7b"
_FLAGS = ["--max-running", "256", "--max-queue", "4096"]


@dataclass
class Seen:
    """What clients saw; times are seconds."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    elapsed: float = 0.0

    def row(self, name: str) -> str:
        ttft, gaps = statistics.quantiles(self.ttft, n=100), statistics.quantiles(self.gaps, n=100)
        figures = [ttft[49], ttft[98], gaps[49], gaps[98]]
        per_event = self.tokens / (len(self.gaps) + len(self.ttft))
        return (
            f"{name:<12}{self.tokens / self.elapsed:>12,.0f}"
            + "".join(f"{1e3 * figure:>12.2f}" for figure in figures)
            + f"{per_event:>14.2f}"
        )


@dataclass(frozen=True)
class Load:
    """So many requests of so many streams, and the longest pause between two of a stream."""

    streams: int
    requests: int
    pause_s: float

    def plays(self) -> list[list[tuple[float, int]]]:
        """For each stream the pause before and the output tokens of each of its requests."""
        random = Random(0)
        each = range(self.requests // self.streams)
        return [[(random.uniform(0, self.pause_s), random.randint(64, 192)) for _ in each] for _ in range(self.streams)]

    def warm_up(self) -> list[list[tuple[float, int]]]:
        """A short request of each stream."""
        return [[(0.0, 16)]] * self.streams


async def at_engine(flags: list[str], load: Load) -> Seen:
    """The load at the engine's process."""
    engine = await EngineClient.start(parse_command(flags, {}).settings.engine)
    seen = Seen()

    async def play(number: int, asks: list[tuple[float, int]]) -> None:
        for place, (pause_s, tokens) in enumerate(asks):
            await asyncio.sleep(pause_s)
            request = Request(
                f"r{number}-{place}", 0, len(PROMPT), tokens, prompt_token_ids=PROMPT,
                sampling=SamplingParams(ignore_eos=True),
            )  # fmt: skip
            last = asked = time.perf_counter()
            (stream,) = engine.submit([request])
            while not stream.ended or last == asked:
                news = await stream.news()
                now = time.perf_counter()
                (seen.ttft if last == asked else seen.gaps).append(now - last)
                last = now
                seen.tokens += len(news)

    try:
        with undisturbed():
            await asyncio.gather(*(play(n, asks) for n, asks in enumerate(load.warm_up())))
            seen = Seen()
            start = time.perf_counter()
            await asyncio.gather(*(play(n, asks) for n, asks in enumerate(load.plays())))
            seen.elapsed = time.perf_counter() - start
    finally:
        await engine.close()
    return seen


class Connection(asyncio.Protocol):
    """A connection that one stream asks on, again and again."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._transport: Any = None
        self._rest = b""
        self._asked = self._last = 0.0
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def ask(self, tokens: int) -> None:
        """One request, to the end of its stream."""
        body = json.dumps(
            {"prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "stream": True,
             "stream_options": {"include_usage": True}}
        ).encode()  # fmt: skip
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._done = asyncio.get_running_loop().create_future()
        self._asked = self._last = time.perf_counter()
        self._transport.write(head.encode() + body)
        await self._done

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        data = self._rest + data
        end = data.rfind(b"\n\n")
        if end < 0:
            self._rest = data
            return
        whole, self._rest = data[:end], data[end + 2 :]
        for _ in range(whole.count(b'"finish_reason"')):
            (self.seen.ttft if self._last == self._asked else self.seen.gaps).append(now - self._last)
            self._last = now
        if b"data: [DONE]" in whole and self._done is not None:
            found = re.search(rb'"completion_tokens":(\d+)', whole)
            if found is None:
                raise RuntimeError(f"a stream ended without usage: {whole[-300:]!r}")
            self.seen.tokens += int(found[1])
            self._rest = b""
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(RuntimeError(f"the server closed a connection: {exc}"))


async def at_port(port: int, load: Load) -> Seen:
    """The load at a server."""
    loop = asyncio.get_running_loop()
    connections = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(load.streams)]

    async def play(connection: Connection, asks: list[tuple[float, int]]) -> None:
        for pause_s, tokens in asks:
            await asyncio.sleep(pause_s)
            await connection.ask(tokens)

    await asyncio.gather(*map(play, connections, load.warm_up()))
    for connection in connections:
        connection.seen = Seen()
    start = time.perf_counter()
    await asyncio.gather(*map(play, connections, load.plays()))
    return Seen(
        [value for connection in connections for value in connection.seen.ttft],
        [value for connection in connections for value in connection.seen.gaps],
        sum(connection.seen.tokens for connection in connections),
        time.perf_counter() - start,
    )


def at_server(flags: list[str], load: Load) -> Seen:
    """The load at a server of its own."""
    command = [sys.executable, str(ROOT / "api_server.py"), *flags, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            lines = iter(server.stderr.readline, "")
            port = next((found[1] for line in lines if (found := re.search(r"http://\S+:(\d+)$", line.strip()))), None)
            if port is None:
                raise SystemExit("the server did not start")
            # a pipe that nobody reads would hold it up
            threading.Thread(target=server.stderr.read, daemon=True).start()
            with undisturbed():
                return uvloop.run(at_port(int(port), load))
        finally:
            server.send_signal(signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--pause-ms", type=float, default=100.0)
    parser.add_argument("--costs", default=COSTS)
    parser.add_argument("--output", type=Path, help="file that the table is written to, too")
    args = parser.parse_args()
    load = Load(args.streams, args.requests, args.pause_ms / 1e3)
    lines = [
        f"# python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])} · {date.today()} · Python "
        f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores",
        f"{'':12}{'tokens/s':>12}{'ttft p50 ms':>12}{'p99':>12}{'gap p50 ms':>12}{'p99':>12}{'tokens/event':>14}",
    ]
    for costs in args.costs.split(","):
        flags = ["--emulate", costs, *_FLAGS]
        engine = uvloop.run(at_engine(flags, load))
        server = at_server(flags, load)
        added = [statistics.median(server.ttft) - statistics.median(engine.ttft),
                 statistics.median(server.gaps) - statistics.median(engine.gaps)]  # fmt: skip
        lines += [
            f"{args.streams} streams on {costs}", engine.row("  engine"), server.row("  HTTP"),
            f"  {'added':<10}{'':12}{1e3 * added[0]:>12.2f}{'':12}{1e3 * added[1]:>12.2f}",
        ]  # fmt: skip
        print(*lines, sep="\n", flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
