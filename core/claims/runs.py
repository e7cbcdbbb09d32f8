"""The runs that the claims are about: a policy on a layout, a load, settings. Distinct ones are run once a round.

They are in the order in which they are run: those that others take their rate from first, those that the claims need
before those that only the experiment has, and neighbours use one executor where they can.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.claims import loads
from core.claims.loads import Load, Scale
from reports.claims import Cell
from scheduler.plan import Layout

#: played on the engine; on the engine under a profiler; in the simulator, on the costs of a GPU that is not here
Where = Literal["engine", "profiled", "projected"]
#: the seed's "NVIDIA A100 40GB PCIe" with Qwen-7B, from the recording on an H100
A100 = "project:h100-qwen-7b:a100-40gb"
ROWS = 16
#: times that each run is run, where there is time
ROUNDS = 3


@dataclass(frozen=True)
class ClaimRun:
    """One run. ``flags`` are as on a command line, ``lengths`` those of them that scale with the lengths."""

    name: str
    policy: str
    layout: Layout
    load: Load
    flags: Mapping[str, Any] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)
    threshold: bool = False
    """whether it has the ageing threshold"""
    where: Where = "engine"

    @property
    def rounds(self) -> int:
        """How often it is run: what needs no machine, once."""
        return 1 if self.where == "projected" else ROUNDS

    def settings(self, scale: Scale) -> dict[str, Any]:
        """All flags beside the policy and the layout."""
        if self.where == "projected":
            scale = loads.FULL
        own = {name: scale.tokens(value) for name, value in {"max_prefill_tokens": 2048, **self.lengths}.items()}
        aging = {"aging_s": scale.threshold_s} if self.threshold else {}
        return {"max_running": ROWS, **self.flags, **own, **aging}

    def text(self, scale: Scale) -> str:
        """What a reader must know of it."""
        settings = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in self.settings(scale).items())
        return f"{self.policy} on {self.layout}: {self.load.text}; {settings}"


_CLOSED = {"batching": "run-to-completion"}
_BUCKET = {"bucket": 32}
_FULLEST = {"bucket_order": "fullest"}
#: a bucket as wide as a third of the inputs, filled up to 16 rows from the next ones, of 20 that hold KV
_WIDE = {**_FULLEST, "min_rows": ROWS, "max_rows": ROWS, "max_running": 20}
_PAGED_KV = {"block_tokens": 16, "kv_tokens": 6144}
_SMALL_BLOCKS = {"block_tokens": 16}


def _experiment(layout: Layout) -> list[ClaimRun]:
    return [
        ClaimRun(f"fcfs-{layout}", "fcfs", layout, loads.BURST),
        ClaimRun(f"fcfs-{layout}-closed", "fcfs", layout, loads.BURST, _CLOSED),
        ClaimRun(f"sjf-{layout}", "sjf", layout, loads.BURST),
        ClaimRun(f"bucket-{layout}", "sjf-bucket", layout, loads.BURST, lengths=_BUCKET),
        ClaimRun(f"fullest-{layout}", "sjf-bucket", layout, loads.BURST, _FULLEST, _BUCKET),
        ClaimRun(f"predicted-{layout}", "sjf-predicted", layout, loads.BURST),
    ]


def _closed(layout: Layout) -> list[ClaimRun]:
    return [
        ClaimRun(f"predicted-{layout}-closed", "sjf-predicted", layout, loads.BURST, _CLOSED),
        ClaimRun(f"bucket-{layout}-closed", "sjf-bucket", layout, loads.BURST, _CLOSED, _BUCKET),
        ClaimRun(f"sjf-{layout}-closed", "sjf", layout, loads.BURST, _CLOSED),
    ]


_ALL = (
    *_experiment("padded"),
    ClaimRun("fcfs-padded-open", "fcfs", "padded", loads.OPEN),
    ClaimRun("closed-padded-open", "fcfs", "padded", loads.OPEN, _CLOSED),
    ClaimRun("bucket-padded-open", "sjf-bucket", "padded", loads.OPEN, lengths=_BUCKET),
    ClaimRun("wide-padded-open", "sjf-bucket", "padded", loads.OPEN, _WIDE, {"bucket": 128}),
    ClaimRun("wide-padded", "sjf-bucket", "padded", loads.BURST, _WIDE, {"bucket": 128}),
    ClaimRun("one-padded", "fcfs", "padded", loads.FEW, {"max_running": 1}),
    ClaimRun("four-padded", "fcfs", "padded", loads.BURST, {"max_running": 4}),
    *_experiment("paged"),
    ClaimRun("fcfs-stream", "fcfs", "paged", loads.STREAM),
    ClaimRun("srpt-stream", "srpt", "paged", loads.STREAM),
    ClaimRun("srpt-noisy-stream", "srpt", "paged", loads.STREAM, {"oracle": "noisy:0.5"}),
    ClaimRun("srpt-history-stream", "srpt", "paged", loads.STREAM, {"oracle": "history"}),
    ClaimRun("sjf-stream", "sjf", "paged", loads.STREAM),
    ClaimRun("aging-stream", "sjf-aging", "paged", loads.STREAM, threshold=True),
    ClaimRun("bucket-stream", "sjf-bucket", "paged", loads.STREAM, lengths=_BUCKET),
    ClaimRun("fullest-stream", "sjf-bucket", "paged", loads.STREAM, _FULLEST, _BUCKET),
    ClaimRun("sjf-sixteen", "sjf", "paged", loads.SIXTEEN),
    ClaimRun("sjf-starving", "sjf", "paged", loads.STARVING),
    ClaimRun("aging-starving", "sjf-aging", "paged", loads.STARVING, threshold=True),
    ClaimRun("fcfs-overlap-stream", "fcfs", "paged", loads.STREAM, {"overlap": True}),
    ClaimRun("fcfs-overlap", "fcfs", "paged", loads.BURST, {"overlap": True}),
    ClaimRun("shared", "fcfs", "paged", loads.SHARED_STREAM),
    ClaimRun("shared-cached", "fcfs", "paged", loads.SHARED_STREAM, {"prefix_cache": True}, _SMALL_BLOCKS),
    ClaimRun("one-paged", "fcfs", "paged", loads.FEW, {"max_running": 1}),
    ClaimRun("four-paged", "fcfs", "paged", loads.BURST, {"max_running": 4}),
    ClaimRun("memory-paged", "fcfs", "paged", loads.MEMORY, lengths=_PAGED_KV),
    ClaimRun("memory-contiguous", "fcfs", "paged", loads.MEMORY, {"kv_pool": "contiguous"}, _PAGED_KV),
    ClaimRun("memory-contiguous-declared", "fcfs", "paged", loads.MEMORY_DECLARED, {"kv_pool": "contiguous"},
             _PAGED_KV),
    ClaimRun("churn", "fcfs", "paged", loads.CHURN, {"max_running": 4}, _SMALL_BLOCKS),
    ClaimRun("one-profiled", "fcfs", "padded", loads.GLANCE, {"max_running": 1}, where="profiled"),
    ClaimRun("batch-padded-profiled", "fcfs", "padded", loads.GLANCE, where="profiled"),
    ClaimRun("batch-paged-profiled", "fcfs", "paged", loads.GLANCE, where="profiled"),
    ClaimRun("batch-overlap-profiled", "fcfs", "paged", loads.GLANCE, {"overlap": True}, where="profiled"),
    ClaimRun("one-a100", "fcfs", "paged", loads.SEED, {"max_running": 1}, where="projected"),
    ClaimRun("batch-a100", "fcfs", "paged", loads.SEED, {"overlap": True}, where="projected"),
    *_closed("paged"),
    *_closed("padded"),
    ClaimRun("fcfs-padded-calm", "fcfs", "padded", loads.CALM),
    ClaimRun("bucket-padded-calm", "sjf-bucket", "padded", loads.CALM, lengths=_BUCKET),
)  # fmt: skip

RUNS: dict[str, ClaimRun] = {run.name: run for run in _ALL}

_TITLES = {"fcfs": "fcfs", "sjf": "sjf", "bucket": "sjf-bucket, lowest first", "fullest": "sjf-bucket, fullest first",
           "predicted": "sjf-predicted (true output lengths)"}  # fmt: skip

#: {padded, paged} x {iteration, run to completion} x policies
CELLS: tuple[Cell, ...] = tuple(
    Cell(layout, batching, title, f"{policy}-{layout}{suffix}", f"fcfs-{layout}{suffix}")
    for layout in ("padded", "paged")
    for batching, suffix in (("iteration", ""), ("run to completion", "-closed"))
    for policy, title in _TITLES.items()
    if f"{policy}-{layout}{suffix}" in RUNS
)


def needed(names: Iterable[str]) -> list[ClaimRun]:
    """The runs of these names and those that they take their rates from, in order."""
    wanted = set(names)
    for run in reversed(_ALL):
        if run.name in wanted and run.load.rate_of is not None:
            wanted.add(run.load.rate_of)
    return [run for run in _ALL if run.name in wanted]
