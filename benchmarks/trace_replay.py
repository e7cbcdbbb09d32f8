"""How long the simulator takes for a trace, per policy: wall seconds, steps, stretches, peak memory.

    .venv/bin/python benchmarks/trace_replay.py --workload TRACE.csv --costs roofline:a100-40gb:qwen-7b

Each policy runs in a process of its own, as ``bench.py --mode sim`` with its whole run folder and report; wall seconds
and peak memory are the process's. Prints a table and, with ``--out``, writes it as CSV.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

# this folder's scheduler.py is not the package
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from core.provenance import git_commit, hardware  # noqa: E402
from scheduler.policies import POLICIES  # noqa: E402

BENCH = Path(__file__).resolve().parent.parent / "bench.py"

COLUMNS = ("policy", "wall_s", "cpu_s", "requests", "finished", "rejected", "steps", "stretches", "requests_per_s",
           "peak_mib", "queue_growth_per_s")  # fmt: skip


def measure(policy: str, argv: list[str], folder: Path) -> dict[str, object]:
    """One run in a child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = time.perf_counter()
    bucket = ["--bucket", "32"] if policy == "sjf-bucket" else []
    command = [sys.executable, str(BENCH), "--mode", "sim", "--quiet", "--policy", policy, *bucket, *argv,
               "--out", str(folder)]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wall_s = time.perf_counter() - start_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads((folder / "summary.json").read_text())
    requests = summary["requests"]
    return {
        "policy": policy,
        "wall_s": round(wall_s, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "requests": requests["submitted"],
        "finished": requests["finished"],
        "rejected": requests["rejected"],
        "steps": summary["steps"]["total"],
        "stretches": summary["steps"]["rows_written"],
        "requests_per_s": round(requests["submitted"] / wall_s),
        "peak_mib": after.ru_maxrss // 1024,
        "queue_growth_per_s": summary["load"]["queue_growth_per_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--costs", default="roofline:a100-40gb:qwen-7b")
    parser.add_argument("--policy", default=",".join(POLICIES))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for policy in args.policy.split(","):
            argv = ["--workload", args.workload, "--costs", args.costs]
            rows.append(measure(policy, argv, Path(temporary) / policy))
            print("  ".join(f"{name} {rows[-1][name]}" for name in COLUMNS), flush=True)
    if args.out:
        with args.out.open("w", newline="", encoding="utf-8") as stream:
            stream.write(f"# {date.today()}, {hardware()}, commit {git_commit()}\n")
            stream.write(f"# python benchmarks/trace_replay.py --workload {Path(args.workload).name}"
                         f" --costs {args.costs}\n")  # fmt: skip
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
