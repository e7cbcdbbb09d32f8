"""Other simulators on a table of requests, in their own interpreter: what ``simulator.py`` runs as a child.

    python benchmarks/peers.py sched-sim|dynamo REQUESTS.csv RUNNING KV_TOKENS

The table has ``arrival_s,input_tokens,output_tokens``. Prints one JSON object, or ``{"skipped": why}``. It needs
nothing but the simulator itself (both are on PyPI: ``sched-sim``, ``ai-dynamo-runtime``). Only the run is timed, not
what comes before it: reading the table, and for Dynamo writing the trace file that it then reads within its time.
"""

from __future__ import annotations

import csv
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

BLOCK_TOKENS = 16
#: Dynamo's traces give a hash for so many tokens of a prompt
TRACE_BLOCK_TOKENS = 64


class Clock:
    """Wall and processor time since it was made."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter(), time.process_time()

    def taken(self) -> dict[str, float]:
        wall_s, cpu_s = self._began_s
        return {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}


def peak_mib() -> int:
    """The most memory that this process held. ``ru_maxrss`` would begin with that of the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def read(path: str) -> list[tuple[float, int, int]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return [
            (float(row["arrival_s"]), int(row["input_tokens"]), int(row["output_tokens"]))
            for row in csv.DictReader(stream)
        ]


def sched_sim(rows: list[tuple[float, int, int]], running: int, kv_tokens: int) -> dict[str, float | int | None]:
    """sched-sim's FCFS on its A100 profile, with the memory and the limits that it has there."""
    from sched_sim.core.event_engine import Simulator
    from sched_sim.core.request import Request
    from sched_sim.hardware.presets import get_hardware_profile
    from sched_sim.schedulers.factory import create_scheduler

    hardware = get_hardware_profile("a100")
    scheduler = create_scheduler("fcfs", hardware)
    requests = [
        Request(request_id=f"r{number}", arrived_at=arrival, prompt_tokens=prompt, output_tokens=output)
        for number, (arrival, prompt, output) in enumerate(rows)
    ]
    clock = Clock()
    simulator = Simulator(hardware, scheduler)
    simulator.submit_workload(requests)
    metrics = simulator.run()
    return {
        **clock.taken(),
        "finished": metrics.completed_requests,
        "steps": metrics.total_iterations,
        "simulated_s": metrics.simulation_duration_s,
    }


def dynamo(rows: list[tuple[float, int, int]], running: int, kv_tokens: int) -> dict[str, float | int | None]:
    """The offline replay of Dynamo's mocker: one worker of its vLLM model, without a prefix cache."""
    from dynamo._core import run_mocker_trace_replay

    engine = {
        "backend": "vllm", "num_gpu_blocks": kv_tokens // BLOCK_TOKENS, "block_size": BLOCK_TOKENS,
        "max_num_seqs": running, "max_num_batched_tokens": 2048, "enable_prefix_caching": False,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        first = 0
        with path.open("w", encoding="utf-8") as stream:
            for arrival, prompt, output in rows:
                blocks = -(-prompt // TRACE_BLOCK_TOKENS)
                line = {
                    "timestamp": arrival * 1e3, "input_length": prompt, "output_length": output,
                    "hash_ids": list(range(first, first + blocks)),
                }  # fmt: skip
                first += blocks
                stream.write(json.dumps(line) + "\n")
        clock = Clock()
        summary = run_mocker_trace_replay(
            [str(path)], extra_engine_args={"engine": engine}, num_workers=1, replay_mode="offline",
            trace_block_size=TRACE_BLOCK_TOKENS,
        ).summary  # fmt: skip
        taken = clock.taken()
    return {
        **taken,
        "finished": summary["completed_requests"],
        # it does not say how many steps it made
        "steps": None,
        "simulated_s": summary["duration_ms"] / 1e3,
    }


def main() -> None:
    which, path, running, kv_tokens = sys.argv[1:]
    rows = read(path)
    try:
        measured = {"sched-sim": sched_sim, "dynamo": dynamo}[which](rows, int(running), int(kv_tokens))
    except ImportError as error:
        print(json.dumps({"skipped": str(error)}))
        return
    measured["peak_mib"] = peak_mib()
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
