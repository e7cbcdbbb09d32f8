"""What monitoring costs the front: a token that is listened to, a scrape, a frame of the live page.

    python benchmarks/monitoring.py

The listener is handed what 256 streams say, a token each at a time, with all that is counted in between. A scrape and a
frame are of a server with 256 running and 256 waiting sequences; the engine's answer is not in it. Times are the
processor's, the least of five rounds.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "serving")]

import orjson  # noqa: E402
from still_engine import SNAPSHOT, Watched  # noqa: E402

from engine.loop import TokenOutput  # noqa: E402
from scheduler.request import Request  # noqa: E402
from serving.cohorts import buckets_of  # noqa: E402
from serving.status import status  # noqa: E402
from serving.traffic import Traffic  # noqa: E402

STREAMS, STEPS, ROUNDS = 256, 200, 5


def least(work: Callable[[], object]) -> float:
    """Processor seconds of the fastest of the rounds."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def token_seconds() -> float:
    """Of one token."""
    traffic = Traffic(4096)
    names = [f"cmpl-{number:032x}-0" for number in range(STREAMS)]
    traffic.submitted([Request(name, 0, 100, 4000) for name in names])
    outputs = [TokenOutput(name, 7, " word") for name in names]

    def steps() -> None:
        for _ in range(STEPS):
            traffic.told(outputs)
        traffic.settle()

    return least(steps) / (STREAMS * STEPS)


def busy() -> Watched:
    """A server with many sequences."""
    watched = Watched()
    lengths = [1 + 7 * number % 500 for number in range(STREAMS)]
    watched.engine.snapshot_now = SNAPSHOT._replace(lengths=lengths, waiting_lengths=lengths)
    return watched


def scrape_seconds() -> float:
    watched = busy()

    def scrape() -> None:
        asyncio.run(watched.metrics.exposition(""))

    scrape()
    return least(scrape)


def frame_seconds() -> float:
    watched = busy()
    buckets = buckets_of(watched.engine.info.config)
    asyncio.run(watched.lookout.look())
    look = watched.lookout.latest

    def frame() -> None:
        orjson.dumps(status(watched.server, watched.traffic, buckets, look, None))

    return least(frame)


def main() -> None:
    print(f"a token that is listened to   {token_seconds() * 1e6:8.2f} us")
    print(f"a scrape of /metrics          {scrape_seconds() * 1e3:8.2f} ms")
    print(f"a frame of the live page      {frame_seconds() * 1e3:8.2f} ms")


if __name__ == "__main__":
    main()
