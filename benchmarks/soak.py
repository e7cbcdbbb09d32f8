"""Half an hour of clients who come, stay, and leave without a word: what a server has left behind at the end.

    python benchmarks/soak.py --minutes 30
    python benchmarks/soak.py --minutes 2 --server-args "--emulate h100-qwen-7b --max-running 64 --policy fcfs"

A server of its own is started. What it carries is measured with as many streams as it runs at once; then requests
arrive as a Poisson process at 80 % of that. A third of the clients leave in the middle of their answer (streamed or
not), one of twenty sends a body that is no request. Every ten seconds a line: memory and file descriptors of both
processes, requests in flight, KV held. At the end, when nothing runs any more, KV blocks, requests, descriptors,
threads and tasks must be what they were before, and memory may not have grown by more than 5 % since the first quarter.
Exit code 1 where that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
SERVER = "--emulate h100-qwen-7b --max-running 128 --policy fcfs --prefix-cache"
HEADER = "minute,requests,answered,left,refused,in_flight,kv_tokens,front_mib,engine_mib,front_fds,engine_fds,threads"
WARM_UP_S = 20.0
#: what memory may grow by from the first quarter to the end, as a share
GROWTH = 0.05


@dataclass
class Client:
    """Requests to one server, and how they ended."""

    port: int
    seed: int
    ends: Counter[str] = field(default_factory=Counter)

    async def ask(self, number: int, leaves: bool = False, broken: bool = False) -> None:
        """One request on a connection of its own. Whoever leaves does so after some part of the answer."""
        chance = random.Random(f"{self.seed}-{number}")
        stream = chance.random() < 0.7
        body = json.dumps(
            {
                "model": "soak",
                "prompt": f"{number} " + "word " * min(2000, int(chance.expovariate(1 / 150)) + 1),
                "max_tokens": min(2000, int(chance.expovariate(1 / 120)) + 1),
                "ignore_eos": True,
                "stream": stream,
                "temperature": chance.choice([0.0, 0.7]),
            }
        ).encode()
        if broken:
            body = body[: chance.randrange(len(body))]
        patience_s = chance.expovariate(1 / 0.5) if leaves else None
        try:
            async with asyncio.timeout(patience_s):
                self.ends[await self._exchange("POST", "/v1/completions", body)] += 1
        except TimeoutError:
            self.ends["left"] += 1
        except OSError as error:
            self.ends[type(error).__name__] += 1

    async def status(self) -> dict[str, Any]:
        """What the server says of itself."""
        answer: list[bytes] = []
        await self._exchange("GET", "/status", b"", answer)
        found: dict[str, Any] = json.loads(b"".join(answer))
        return found

    async def _exchange(self, method: str, path: str, body: bytes, answer: list[bytes] | None = None) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            head = f"{method} {path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            code = (await reader.readline()).split()[1].decode()
            length = None
            while (line := await reader.readline()).strip():
                name, _, value = line.decode().partition(":")
                length = int(value) if name.lower() == "content-length" else length
            while data := await reader.read(1 << 16):
                if answer is not None:
                    answer.append(data)
            return code
        finally:
            writer.transport.abort()


def processes(pid: int) -> tuple[psutil.Process, psutil.Process]:
    """The front and the engine behind it."""
    front = psutil.Process(pid)
    (engine,) = [child for child in front.children() if "engine_process" in " ".join(child.cmdline())]
    return front, engine


def left_behind(front: psutil.Process, engine: psutil.Process, status: dict[str, Any]) -> dict[str, int]:
    """What must be as before when nothing runs."""
    state = status["state"]
    return {
        "requests in flight": status["in_flight"],
        "running": state["running"],
        "waiting": state["waiting"],
        "KV slots given out": state["kv"]["allocated"],
        "tasks": status["tasks"],
        "descriptors of the front": front.num_fds(),
        "descriptors of the engine": engine.num_fds(),
        "threads of the engine": engine.num_threads(),
    }


def mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


async def capacity(client: Client, streams: int, seconds: float) -> float:
    """Requests a second with so many streams at a time."""
    until_s = time.monotonic() + seconds
    asked = 0

    async def one() -> None:
        nonlocal asked
        while time.monotonic() < until_s:
            asked += 1
            await client.ask(-asked)

    began_s = time.monotonic()
    await asyncio.gather(*(one() for _ in range(streams)))
    return asked / (time.monotonic() - began_s)


async def settled(client: Client) -> dict[str, Any]:
    """The status when nothing is in flight."""
    for _ in range(600):
        status = await client.status()
        if not status["in_flight"] and not status["state"]["running"]:
            await asyncio.sleep(2)
            return await client.status()
        await asyncio.sleep(0.1)
    return status


async def soak(pid: int, port: int, minutes: float, load: float, streams: int, seed: int) -> bool:
    """Returns whether nothing was left behind."""
    client = Client(port, seed)
    await capacity(client, streams, WARM_UP_S)
    front, engine = processes(pid)
    before = left_behind(front, engine, await settled(client))
    rate = load * await capacity(client, streams, WARM_UP_S)
    print(f"# {rate:.2f} requests/s arrive, {load:.0%} of what {streams} streams at a time get", flush=True)
    print(HEADER, flush=True)
    client.ends.clear()
    chance = random.Random(seed)
    began_s = time.monotonic()
    next_s, number, told_s = began_s, 0, began_s
    tasks: set[asyncio.Task[None]] = set()
    sizes: list[float] = []
    while (now_s := time.monotonic()) < began_s + 60 * minutes:
        while next_s <= now_s:
            number += 1
            task = asyncio.create_task(client.ask(number, chance.random() < 1 / 3, chance.random() < 1 / 20))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            next_s += chance.expovariate(rate)
        if now_s >= told_s:
            told_s += 10
            status = await client.status()
            sizes.append(mib(front) + mib(engine))
            ends, held = client.ends, status["state"]["kv"]["held"]
            print(
                f"{(now_s - began_s) / 60:.1f},{number},{ends['200']},{ends['left']},{ends['400']},"
                f"{status['in_flight']},{held},{mib(front):.0f},{mib(engine):.0f},"
                f"{front.num_fds()},{engine.num_fds()},{front.num_threads() + engine.num_threads()}",
                flush=True,
            )
        await asyncio.sleep(max(0.0, min(next_s, told_s) - time.monotonic()))
    await asyncio.gather(*tasks)
    after = left_behind(front, engine, await settled(client))
    sizes.append(mib(front) + mib(engine))
    quarter = max(sizes[: max(1, len(sizes) // 4)])
    print(f"# ends: {dict(sorted(client.ends.items()))}")
    for name in before:
        print(f"# {name}: {before[name]} before, {after[name]} after")
    print(f"# memory: {quarter:.0f} MiB at most in the first quarter, {sizes[-1]:.0f} at the end")
    grown = [name for name in before if after[name] > before[name]]
    odd = [end for end in client.ends if end not in ("200", "400", "left")]
    if grown or odd or sizes[-1] > quarter * (1 + GROWTH):
        print(f"# FAILED: {', '.join([*grown, *odd]) or 'memory'}")
        return False
    print("# nothing is left behind")
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def ready(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.2)
        else:
            writer.close()
            return
    raise SystemExit(f"the server ended with exit code {process.returncode}")


async def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--load", type=float, default=0.8, help="share of what the server carries (default 0.8)")
    parser.add_argument("--streams", type=int, default=128, help="at a time, when that is measured (default 128)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server-args", default=SERVER, help=f"default: {SERVER}")
    args = parser.parse_args()
    port = free_port()
    command = [sys.executable, str(ROOT / "api_server.py"), "--port", str(port), "--served-model-name", "soak",
               *shlex.split(args.server_args)]  # fmt: skip
    print(f"# python api_server.py {args.server_args}")
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        await ready(port, process)
        clean = await soak(process.pid, port, args.minutes, args.load, args.streams, args.seed)
        process.terminate()
        code = process.wait(60)
        print(f"# the server ended with exit code {code} when it was told to")
        return 0 if clean and code == 0 else 1
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
