"""How fast the simulator is, beside others on the same requests.

    python benchmarks/simulator.py --lengths TRACE.csv --peers PYTHON
    python benchmarks/simulator.py --lengths TRACE.csv --requests 1000000 --load 0.8 --policies fcfs,sjf-bucket
    LOCKSTEP_COMPILE=1 pip install --no-deps --target build/compiled .
    python benchmarks/simulator.py --lengths TRACE.csv --package build/compiled

Requests have the lengths of a trace, over and over, and arrive as a Poisson process: at ``--rate`` a second, or at a
share (``--load``) of what each policy can carry, which is measured first on requests that all wait from the start (the
rate of the middle half of their finishes). Costs are a roofline's; the model's context limits nothing, as it does not
in the others.

Each line is a process of its own on one thread. ``bare`` is the scheduler on simpy with nothing recorded but its
counters and the digest of its plans; ``recorded`` writes a run folder with all its rows and its summary, which is
``bench.py --mode sim`` without the HTML report. Printed are requests, steps and simulated seconds per second, and the
process's peak memory. A second is one of the processor's: on a machine that does nothing else, one of wall time.

Others: sched-sim and Dynamo's mocker replay, from PyPI, in the interpreter that ``--peers`` names; what is not
installed there is skipped.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from random import Random
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("system", "policy", "what", "requests", "finished", "steps", "simulated_s", "wall_s", "cpu_s",
           "requests_per_s", "steps_per_s", "simulated_s_per_s", "peak_mib")  # fmt: skip
#: requests that a policy's capacity is measured with
CAPACITY_REQUESTS = 20_000


def lengths(path: Path) -> list[tuple[int, int]]:
    """Prompt and output tokens of each row of a trace."""
    from workloads.traces import read_trace

    return [(row.prompt_tokens, row.output_tokens) for row in read_trace(str(path)).rows]


def arrivals_ns(count: int, rate: float, seed: int) -> array[int]:
    """Times of a Poisson process; all 0 for a rate of 0."""
    rng, now = Random(seed), 0.0
    found = array("q")
    for _ in range(count):
        now += rng.expovariate(rate) if rate else 0.0
        found.append(int(now * 1e9))
    return found


def simulated(task: dict[str, Any]) -> dict[str, Any]:
    """Run the simulator as ``task`` says, in this process."""
    sys.path[0] = task["package"]
    sys.path.insert(1, str(ROOT))
    import scheduler.scheduler as scheduler_module
    from benchmarks.peers import Clock, peak_mib
    from reports.run_folder import RunWriter
    from scheduler.config import SchedulerConfig
    from scheduler.request import Request
    from scheduler.scheduler import Scheduler
    from simulator.replica import simulate
    from simulator.roofline import roofline

    gpu, model = task["costs"].split(":")[1:]
    costs = roofline(gpu, model)
    config = SchedulerConfig.from_dict(
        {
            "policy": task["policy"],
            "layout": "paged",
            "max_running": task["running"],
            "kv_tokens": costs.kv_tokens,
            **({"bucket": task["bucket"]} if task["policy"] == "sjf-bucket" else {}),
        }
    )
    rows, times = lengths(Path(task["lengths"])), arrivals_ns(task["requests"], task["rate"], task["seed"])

    def requests() -> Iterator[Request]:
        for number, arrival_ns in enumerate(times):
            prompt, output = rows[number % len(rows)]
            yield Request(f"r{number}", arrival_ns, prompt, output, output)

    finishes = array("q")

    class Finishes:
        def stepped(self, plan: Any, steps: int, outcome: Any) -> None: ...

        def gaps(self, gap_ns: Any, weight: int) -> None: ...

        def ended(self, sequence: Any) -> None:
            finishes.append(sequence.finish_ns)

    what = task["what"]
    with tempfile.TemporaryDirectory() as folder:
        writer = None
        if what == "recorded":
            writer = RunWriter(Path(folder) / "run", {"config": config.as_dict(), "world": "sim"})
        observer = Finishes() if what == "capacity" else writer
        clock = Clock()
        scheduler = simulate(requests(), Scheduler(config, observer), costs)
        counters, digest = scheduler.counters, scheduler.digest.hexdigest()
        if writer is not None:
            writer.close(counters, digest, costs=costs, report=False)
        taken = clock.taken()
    compiled = not scheduler_module.__file__.endswith(".py")
    measured: dict[str, Any] = {
        **taken,
        "finished": counters.finished,
        "steps": counters.steps_prefill + counters.steps_decode + counters.steps_mixed,
        "simulated_s": scheduler.now_ns / 1e9,
        "system": "lockstep, compiled" if compiled else "lockstep",
        "digest": digest,
        "peak_mib": peak_mib(),
    }
    if what == "capacity":
        quarter = len(finishes) // 4
        measured["per_s"] = (len(finishes) - 2 * quarter) / ((finishes[-quarter - 1] - finishes[quarter]) / 1e9)
    return measured


def child(command: list[str]) -> dict[str, Any]:
    """What a child process prints last, as JSON."""
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **one_thread})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def our_child(task: dict[str, Any]) -> dict[str, Any]:
    return child([sys.executable, str(Path(__file__).resolve()), "--task", json.dumps(task)])


class Table:
    """Prints rows as they come, to the terminal and to a file."""

    def __init__(self, out: TextIO | None) -> None:
        self._out = out

    def line(self, text: str) -> None:
        for stream in (sys.stdout, self._out):
            if stream is not None:
                print(text, file=stream, flush=True)

    def row(self, policy: str, what: str, requests: int, found: dict[str, Any]) -> None:
        """One measurement."""
        cpu_s, steps = found["cpu_s"], found["steps"]
        cells = {
            "system": found["system"],
            "policy": policy,
            "what": what,
            "requests": requests,
            "finished": found["finished"],
            "steps": "-" if steps is None else steps,
            "simulated_s": round(found["simulated_s"]),
            "wall_s": round(found["wall_s"], 2),
            "cpu_s": round(cpu_s, 2),
            "requests_per_s": round(requests / cpu_s),
            "steps_per_s": "-" if steps is None else round(steps / cpu_s),
            "simulated_s_per_s": round(found["simulated_s"] / cpu_s),
            "peak_mib": found["peak_mib"],
        }
        self.line(",".join('"' + str(cell) + '"' if "," in str(cell) else str(cell) for cell in cells.values()))


def compare(args: argparse.Namespace, table: Table) -> None:
    """All the lines."""
    task = {
        "lengths": str(args.lengths), "costs": args.costs, "running": args.running, "bucket": args.bucket,
        "seed": args.seed, "package": str(args.package.resolve()), "requests": args.requests, "rate": args.rate,
    }  # fmt: skip
    for policy in args.policies.split(",") if args.policies else ():
        if args.load is not None:
            waiting = {**task, "policy": policy, "what": "capacity", "rate": 0.0, "requests": CAPACITY_REQUESTS}
            capacity = our_child(waiting)["per_s"]
            task["rate"] = args.load * capacity
            table.line(f"# {policy}: capacity {capacity:.2f} requests/s, {task['rate']:.2f} arrive")
        for what in args.what.split(","):
            found = our_child({**task, "policy": policy, "what": what})
            table.row(policy, what, args.requests, found)
    if args.load is not None:
        return
    from simulator.roofline import roofline

    kv_tokens = roofline(*args.costs.split(":")[1:]).kv_tokens
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.csv"
        rows = lengths(args.lengths)
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("arrival_s", "input_tokens", "output_tokens"))
            for number, arrival_ns in enumerate(arrivals_ns(args.requests, args.rate, args.seed)):
                writer.writerow((arrival_ns / 1e9, *rows[number % len(rows)]))
        peers = str(Path(__file__).resolve().with_name("peers.py"))
        for system in ("sched-sim", "dynamo"):
            try:
                found = child([args.peers, peers, system, str(path), str(args.running), str(kv_tokens)])
            except OSError as error:
                found = {"skipped": f"cannot run {args.peers}: {error.strerror}"}
            if "skipped" in found:
                table.line(f"# {system} skipped: {found['skipped']}")
            else:
                table.row("fcfs", "bare", args.requests, {"system": system, **found})


def main() -> None:
    sys.path[0] = str(ROOT)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=Path, help="the trace whose lengths requests have")
    parser.add_argument("--requests", type=int, default=10_000)
    arriving = parser.add_mutually_exclusive_group()
    arriving.add_argument("--rate", type=float, default=4.0, help="requests a second (default 4)")
    arriving.add_argument("--load", type=float, help="arrive at this share of each policy's own capacity")
    parser.add_argument("--policies", default="fcfs,sjf,hrrn,sjf-bucket")
    parser.add_argument("--what", choices=("bare", "recorded", "bare,recorded"), default="bare,recorded")
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--bucket", default="32", help="of sjf-bucket")
    parser.add_argument("--costs", default="roofline:a100-80gb:llama-2-7b")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--package", type=Path, default=ROOT, help="folder that holds the scheduler and simulator")
    parser.add_argument("--peers", default=sys.executable, help="the interpreter that has the other simulators")
    parser.add_argument("--out", type=Path, help="write the table there too (appended to)")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps(simulated(json.loads(args.task))))
        return
    if args.lengths is None:
        parser.error("--lengths names the trace whose lengths requests have")
    from core.provenance import git_commit, hardware

    out = args.out.open("a", encoding="utf-8") if args.out else None
    table = Table(out)
    shown = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    table.line(f"# python benchmarks/simulator.py {' '.join(shown)}")
    table.line(f"# {date.today()}, {hardware()}, commit {git_commit()}")
    table.line(",".join(COLUMNS))
    compare(args, table)


if __name__ == "__main__":
    main()
