"""The M/M/1 table of ``--mode reproduce`` with a million jobs: mean response times, their errors, wall seconds.

    .venv/bin/python benchmarks/mm1.py --out benchmarks/results/mm1.csv

A discipline at a load runs in a process of its own, ``--processes`` at a time; each takes about 1.5 GB of memory for a
million jobs. Prints a row as it ends and, with ``--out``, writes all as CSV.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from pathlib import Path

# this folder's scheduler.py is not the package
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from core.provenance import git_commit, hardware  # noqa: E402
from core.reproduce.mm1 import DISCIPLINES, TOLERANCE, rows_of  # noqa: E402

COLUMNS = ("discipline", "load", "jobs", "published", "theory", "simulated", "error_99", "difference", "verdict",
           "wall_s")  # fmt: skip


def measure(index: int, rho: float, jobs: int, seed: int) -> dict[str, object]:
    """One discipline at one load."""
    start_s = time.perf_counter()
    discipline = DISCIPLINES[index]
    simulated, integral = rows_of(discipline, rho, jobs, seed)
    return {
        "discipline": discipline.title,
        "load": rho,
        "jobs": jobs,
        "published": simulated.published,
        "theory": f"{integral.ours:.4f}",
        "simulated": f"{simulated.ours:.4f}",
        "error_99": f"{simulated.error:.4f}",
        "difference": simulated.difference_text(),
        "verdict": simulated.verdict,
        "wall_s": round(time.perf_counter() - start_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--disciplines", default=",".join(d.title for d in DISCIPLINES), help="with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    titles = [discipline.title for discipline in DISCIPLINES]
    unknown = set(args.disciplines.split(",")) - set(titles)
    if unknown:
        parser.error(f"unknown disciplines: {', '.join(sorted(unknown))} (valid: {', '.join(titles)})")
    cases = [(titles.index(title), rho) for rho in TOLERANCE for title in args.disciplines.split(",")]
    with ProcessPoolExecutor(args.processes, max_tasks_per_child=1) as pool:
        futures = {pool.submit(measure, index, rho, args.jobs, args.seed): (index, rho) for index, rho in cases}
        found = {}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            print("  ".join(f"{name} {value}" for name, value in future.result().items()), flush=True)
    if args.out:
        with args.out.open("w", newline="", encoding="utf-8") as stream:
            stream.write(f"# {date.today()}, {hardware()}, commit {git_commit()}\n")
            stream.write(f"# python {' '.join(sys.argv)}\n")
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(found[case] for case in cases)


if __name__ == "__main__":
    main()
