"""The command line's flags: one meaning in every mode, one clear line for every mistake."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml

from reports.gate import Ceiling, GateError
from scheduler.buckets import BUCKETS, equal_mass_buckets, parse_buckets
from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError, unknown_name
from scheduler.graphs import Graphs
from scheduler.kv import PoolKind
from scheduler.oracle import ORACLES, parse_oracle
from scheduler.orders import BUCKET_ORDERS
from scheduler.parts import (
    ADMISSIONS,
    AGEINGS,
    BATCHINGS,
    PHASES,
    PREEMPTIONS,
    VICTIMS,
    parse_admission,
    parse_batching,
)
from scheduler.plan import Layout
from scheduler.policies import POLICIES, policy_name
from scheduler.user_policies import is_policy_file, open_user_policy
from simulator.cluster.routers import ROUTERS

MODES = ("tour", "real", "sim", "validate", "tune", "report", "gate", "reproduce")
LISTS = ("policies", "parts", "orders", "oracles", "buckets", "routers", "workloads", "models", "costs", "gpus")
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
POOLS: tuple[PoolKind, ...] = get_args(PoolKind)

#: the most sequences holding KV where neither the command nor the workload says; vLLM's default
DEFAULT_MAX_RUNNING = 256

#: tokens of a KV block where neither the command nor recorded costs say
DEFAULT_BLOCK_TOKENS = 16

#: seconds of a recording of costs where nobody says
DEFAULT_BUDGET_S = 60.0

#: what ``--tune`` looks for
TUNINGS = ("settings", "bucket", "capacity")
DEFAULT_TUNING_BUDGET = "5m"

#: flags that set fields of :class:`~scheduler.config.SchedulerConfig` and decide nothing about who goes when
_COMMON_SETTINGS = ("max_prefill_tokens", "kv_pool", "block_tokens", "max_rows")

#: flags of the parts that go with any policy
_PARTS = ("batching", "phase", "chunk_tokens", "admission", "aging", "aging_s", "aging_weight", "victim", "preemption",
          "swap_tokens", "prefix_cache", "overlap", "oracle")  # fmt: skip

#: flags of what some policies take; the others are not given it where several policies are run
_OWN_SETTINGS = ("bucket", "bucket_order", "bins", "min_rows", "quantum", "min_batch", "max_wait_s")

#: every setting that a policy is made of, as it is where nothing is asked for
PLAIN = {f.name: f.default for f in fields(SchedulerConfig) if f.name in (*_PARTS, *_OWN_SETTINGS)}

_PLAYED = {"workload", "trace_format", "requests", "rate", "arrivals", "time_scale", "seed", "strict"}
_SCHEDULED = {*PLAIN, *_COMMON_SETTINGS, "max_running", "kv_tokens", *Graphs._fields}
_ENGINE = {"model", "device", "dtype", "temperature", "gpu_memory_utilization"}
_RECORDING = {"record_costs", "budget_s"}
_CLAIMS = {"claims", "experiments", "budget_s"}
_CLUSTER = {"replicas", "replica_costs", "router", "autoscale", "faults", "disaggregate", "kv_transfer",
            "kv_latency_ms", "kv_token_bytes"}  # fmt: skip
_COSTS = {"costs", "jitter", "force"}
_OUTPUT = {"slo", "out", "name", "config", "dry_run", "quiet"}
_GATE = {"ceiling"}
_TUNING = {"tune", "budget", "objective", "space", "confidence", "attainment", "gpu_hour_price", "workers", "ray",
           "validate_top", "validate_s", "validate_requests", "validate_rounds", "rounds"}  # fmt: skip

#: the flags that mean something in a mode; any other that is given is a mistake, since it would be ignored
FLAGS_OF_MODE = {
    "tour": _PLAYED | _SCHEDULED | _ENGINE | _OUTPUT,
    "real": _PLAYED | _SCHEDULED | _ENGINE | _OUTPUT | {"policy", "layout", "stop_on_eos", "tp", *_RECORDING},
    "sim": _PLAYED | _SCHEDULED | _OUTPUT | _CLUSTER | _COSTS | {"policy", "layout"},
    "validate": _PLAYED
    | _SCHEDULED
    | _ENGINE
    | _OUTPUT
    | _COSTS
    | {"policy", "layout", "stop_on_eos", "tp", "matrix", *_CLAIMS},
    "tune": _PLAYED | _SCHEDULED | _ENGINE | _OUTPUT | _CLUSTER | _COSTS | _TUNING | {"policy", "layout", "tp"},
    "report": {"runs", "profile", "costs", "tables", "out", "config", "quiet"},
    "gate": _PLAYED | _SCHEDULED | _GATE | {"policy", "layout", "baseline", "update_baseline", "config", "quiet"},
    "reproduce": {"experiments", "jobs", "seed", "out", "name", "config", "quiet"},
}


#: what the gate of the repository itself leaves open: its cases and ceilings are what they are
REPOSITORY_GATE_FLAGS = FLAGS_OF_MODE["gate"] - _PLAYED - _SCHEDULED - _GATE - {"policy", "layout"}


#: what a recording of costs leaves open: the rest of a real run is its plan's to say
RECORDING_FLAGS = _ENGINE | _RECORDING | {
    "tp", "layout", "max_running", "max_prefill_tokens", "kv_tokens", "block_tokens", *Graphs._fields, "overlap",
    "seed", "out", "name", "config", "dry_run", "quiet",
}  # fmt: skip


#: what the claims leave open: their runs are what they are
CLAIMS_FLAGS = _CLAIMS | {
    "model", "device", "dtype", "gpu_memory_utilization", "seed", "out", "name", "config", "dry_run", "quiet",
}  # fmt: skip


POLICY_HELP = "; ".join(POLICIES) + "; orca = srpt; or your own: FILE.yaml, FILE.py:NAME"


class UsageError(ValueError):
    """The command cannot be understood or carried out; the message is one line."""


class ArgumentParser(argparse.ArgumentParser):
    """Raises :class:`UsageError` where argparse would print its usage and leave, and names the nearest flag."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            given = unknown[0].split("=")[0]
            near = difflib.get_close_matches(given, flags, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else "; --help lists all"
            raise UsageError(f"unknown argument {unknown[0]!r}{hint}")
        return args


def number(kind: Callable[[str], Any], least: float, exclusive: bool = False) -> Callable[[str], Any]:
    """An argparse type: a number that is at least (or, ``exclusive``, more than) ``least``."""
    bound = f"> {least:g}" if exclusive else f">= {least:g}"
    title = "a whole number" if kind is int else "a number"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {title}") from None
        if not (value > least if exclusive else value >= least):
            raise argparse.ArgumentTypeError(f"{text} is out of range; must be {bound}")
        return value

    return parse


def one_of(what: str, valid: Sequence[str]) -> Callable[[str], str]:
    """An argparse type: one of ``valid``, or an error that names the nearest."""

    def parse(text: str) -> str:
        if text not in valid:
            raise argparse.ArgumentTypeError(unknown_name(what, text, valid))
        return text

    return parse


def checked(parse: Callable[[str], Any]) -> Callable[[str], str]:
    """An argparse type: a text that ``parse`` takes, which raises :class:`ConfigError` for any other."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return check


def _policies(text: str) -> list[str]:
    return [_policy(name.strip()) for name in text.split(",")]


def _policy(name: str) -> str:
    """A policy's canonical name, or a file of the user's: ``mine.py:Name`` or ``mine.yaml``."""
    try:
        if is_policy_file(name):
            open_user_policy(SchedulerConfig(policy=name))
            return name
        return policy_name(name)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _bucket(text: str) -> int | str:
    checked(lambda text: equal_mass_buckets(text) or parse_buckets(text))(text)
    return int(text) if text.isdecimal() else text


def _graphs(text: str) -> tuple[int, ...]:
    try:
        sizes = () if text == "none" else tuple(int(size) for size in text.split(","))
        return SchedulerConfig(graph_rows=sizes).graph_rows
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("graph_rows ")) from None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'none' nor numbers, such as 1,2,4,8") from None


def _two_pools(text: str) -> tuple[int, int]:
    return _two_counts(text, "P:D, such as 1:2: prefill replicas, then decode replicas")


def _two_counts(text: str, form: str) -> tuple[int, int]:
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not {form}")
    return int(parts[0]), int(parts[1])


def _replicas(text: str) -> int | tuple[int, int]:
    if ":" not in text:
        return int(number(int, 1)(text))
    least, most = _two_counts(text, "A:B, such as 1:16: the fewest replicas, then the most")
    if least > most:
        raise argparse.ArgumentTypeError(f"{text} has its ends the wrong way round; write {most}:{least}")
    return least, most


def _share(text: str) -> float:
    value = float(number(float, 0, exclusive=True)(text))
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is out of range; must be a share below 1, such as 0.95")
    return value


@dataclass(frozen=True)
class Budget:
    """What a search may take: so many ``seconds``, or so many ``settings``."""

    seconds: float | None = None
    settings: int | None = None

    def __str__(self) -> str:
        return f"{self.seconds:g} s" if self.settings is None else f"{self.settings} settings"


def parse_budget(text: str) -> Budget:
    """``5m``, ``90s``, ``2h``: a time; ``200``: a number of settings. An argparse type."""
    if text.isdecimal():
        return Budget(settings=int(number(int, 1)(text)))
    seconds = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    if seconds is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a time such as 5m nor a number of settings such as 200")
    return Budget(seconds=float(number(float, 0, exclusive=True)(text[:-1])) * seconds)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _layouts(text: str) -> list[str]:
    return [one_of("layout", LAYOUTS)(name.strip()) for name in text.split(",")]


def _ceilings(text: str) -> list[Ceiling]:
    try:
        return [Ceiling.parse(part) for part in text.split(",")]
    except GateError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser() -> ArgumentParser:
    """The parser of ``bench.py``."""
    positive, natural = number(int, 1), number(int, 0)
    parser = ArgumentParser(
        prog="bench.py",
        allow_abbrev=False,
        description="Benchmark LLM inference scheduling: in a simulator, on a real engine, and one against the other. "
        "Without arguments: a tour of a few minutes with the embedded model.",
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, for --mode report")
    parser.add_argument("--mode", type=one_of("mode", MODES), default="tour", metavar="MODE", help=" | ".join(MODES))
    parser.add_argument("--list", type=one_of("list", LISTS), metavar="WHAT", help=" | ".join(LISTS))

    group = parser.add_argument_group("what is played")
    group.add_argument("--workload", metavar="NAME|FILE", help="a preset or a trace file")
    group.add_argument("--trace-format", metavar="NAME", help="the trace's format, where it is not recognised")
    group.add_argument("--requests", type=positive, metavar="N", help="how many; of a trace the first N")
    group.add_argument("--rate", type=number(float, 0, exclusive=True), metavar="R", help="arrivals per second")
    group.add_argument("--arrivals", metavar="PROCESS", help="poisson | gamma:CV | constant | trace | all-at-once")
    group.add_argument("--time-scale", type=number(float, 0, exclusive=True), metavar="X", help="2 is twice as slow")
    group.add_argument("--seed", type=natural, default=0, metavar="S", help="of everything random (default 0)")
    group.add_argument("--temperature", type=number(float, 0), metavar="T", help="default: the workload's")
    group.add_argument("--stop-on-eos", action="store_true", help="let the model end answers, not the workload (real)")
    group.add_argument("--strict", action="store_true", help="exit 2 if any request can never be served")

    group = parser.add_argument_group("who goes when")
    group.add_argument("--policy", type=_policies, metavar="NAME[,NAME]", help=POLICY_HELP)
    _add_own_settings(group)
    _add_parts(parser)

    group = parser.add_argument_group("memory and batch")
    group.add_argument("--layout", type=_layouts, metavar="NAME[,NAME]",
                       help="padded | paged (default paged, of the gate padded)")  # fmt: skip
    _add_memory(group)

    group = _add_engine(parser)
    group.add_argument(
        "--record-costs", action="store_true", help="record what steps cost, instead of a workload (real)"
    )
    group.add_argument("--budget-s", type=number(float, 0, exclusive=True), metavar="S",
                       help=f"time of the recording (default {DEFAULT_BUDGET_S:g}) or of the claims (900, on a "
                            "GPU 450), the model loaded")  # fmt: skip

    group = parser.add_argument_group("the simulated hardware")
    group.add_argument("--costs", metavar="RUN|PROFILE|roofline:GPU:MODEL|project:PROFILE:GPU[:MODEL]",
                       help="a recorded run folder, a profile, a roofline, or a profile projected to another GPU "
                            "(--list costs)")  # fmt: skip
    group.add_argument("--jitter", action="store_true", help="step times vary as recorded ones do, by --seed")
    group.add_argument("--force", action="store_true", help="take costs that were recorded with other settings")
    group.add_argument("--profile", type=Path, metavar="FILE.csv.xz", help="make a profile of recorded runs (report)")

    group = parser.add_argument_group("a validation matrix (--mode validate)")
    group.add_argument("--matrix", type=Path, metavar="FILE.yaml",
                       help="cells of policy, layout, workload and load; goes on where it was stopped")  # fmt: skip

    group = parser.add_argument_group("the seed's claims (--mode validate)")
    group.add_argument("--claims", action="store_true",
                       help="every claim as runs before and after, and its verdict; goes on where it was stopped "
                            "(--experiments for some of them, --budget-s for how long)")  # fmt: skip

    group = parser.add_argument_group("many replicas (--mode sim; docs/cluster.md)")
    group.add_argument("--replicas", type=_replicas, metavar="N|A:B",
                       help="replicas of --costs behind a router; from A to B are tried (tune)")  # fmt: skip
    group.add_argument("--replica-costs", type=_names, metavar="COSTS,COSTS,...", help="those of each replica")
    group.add_argument("--router", type=one_of("router", tuple(ROUTERS)), metavar="NAME",
                       help="; ".join(ROUTERS) + " (default round-robin; --list routers)")  # fmt: skip
    group.add_argument("--autoscale", type=Path, metavar="FILE.yaml", help="an autoscaler's settings")
    group.add_argument("--faults", metavar="FAULT,...|FILE.yaml",
                       help="die:REPLICA@S[+DOWN_S] | slow:REPLICA@S+FOR_SxFACTOR")  # fmt: skip
    group.add_argument("--disaggregate", type=_two_pools, metavar="P:D", help="prefill replicas, and decode replicas")
    group.add_argument("--kv-transfer", type=number(float, 0, exclusive=True), metavar="GB/s",
                       help="from prefill to decode replicas (default: the link of the roofline's GPU)")  # fmt: skip
    group.add_argument("--kv-latency-ms", type=number(float, 0), metavar="MS", help="of a transfer (default 0)")
    group.add_argument("--kv-token-bytes", type=positive, metavar="N", help="of KV (default: the model's shape)")

    _add_tuning(parser)

    group = parser.add_argument_group("published results (--mode reproduce)")
    group.add_argument("--experiments", type=_names, metavar="NAME[,NAME]",
                       help="which ones, of the claims too (default: all)")  # fmt: skip
    group.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="of each queue (default 4000 for M/M/1, 9600 for others; 1000000 for the tolerances)",
    )

    group = parser.add_argument_group("what counts, and where it goes")
    group.add_argument("--slo", metavar="NAME=MS,...", help="what counts as good, e.g. ttft_ms=500,tpot_ms=50")
    group.add_argument("--out", type=Path, metavar="FOLDER", help="exactly there (default: runs/<time>-<name>)")
    group.add_argument("--tables", type=Path, metavar="FOLDER",
                       help="CSV, Parquet, SVG and summary.md of a report, there (report)")  # fmt: skip
    group.add_argument("--name", metavar="TEXT", help="the run's name")
    group.add_argument("--config", type=Path, metavar="FILE", help="YAML of flags; those on the command line win")
    group.add_argument("--dry-run", action="store_true", help="check everything, print what would be run")
    group.add_argument("--quiet", action="store_true", help="no progress and no table")

    group = parser.add_argument_group("the padding-waste gate (--mode gate; docs/gate.md)")
    group.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE.json",
        help="what is compared with (default: Lockstep's own; with --workload padding_baseline.json)",
    )
    group.add_argument("--update-baseline", action="store_true", help="make what the gate finds the new baseline")
    group.add_argument("--ceiling", type=_ceilings, metavar="CASE=LIMIT,...",
                       help="the most padding of decode steps: sjf-bucket/padded=5%%, or what another case has: "
                            "sjf-bucket/padded=fcfs/padded; of other kinds: CASE/prefill, CASE/graph")  # fmt: skip
    return parser


def _add_tuning(parser: argparse.ArgumentParser) -> None:
    positive, share = number(int, 1), _share
    group = parser.add_argument_group("tuning (--mode tune; docs/tuning.md)")
    group.add_argument("--tune", type=one_of("tuning", TUNINGS), default="settings", metavar="WHAT",
                       help=" | ".join(TUNINGS) + ": what is looked for (default settings)")  # fmt: skip
    group.add_argument("--budget", type=parse_budget, metavar="TIME|N",
                       help=f"5m, 90s, 2h, or a number of settings (default {DEFAULT_TUNING_BUDGET})")  # fmt: skip
    group.add_argument("--objective", type=_names, metavar="NAME[,NAME]",
                       help="goodput | throughput | latency[:FIGURE] | cost: several give the trade-off between them "
                            "(default goodput, with a range of replicas cost)")  # fmt: skip
    group.add_argument("--space", type=Path, metavar="FILE.yaml", help="knobs and their ranges, beside the usual ones")
    group.add_argument("--confidence", type=share, default=0.95, metavar="SHARE",
                       help="of what is said of the recommendation (default 0.95)")  # fmt: skip
    group.add_argument("--attainment", type=share, default=0.9, metavar="SHARE",
                       help="of requests that must meet --slo for a rate or a cost to count (default 0.9)")  # fmt: skip
    group.add_argument("--gpu-hour-price", type=number(float, 0, exclusive=True), metavar="PRICE",
                       help="for the cost; without it costs are in GPU-hours")  # fmt: skip
    group.add_argument("--workers", type=positive, metavar="N", help="processes that simulate (default: all cores)")
    group.add_argument("--ray", metavar="ADDRESS", help="simulate on a Ray cluster: HOST:PORT, auto, or local")
    group.add_argument("--validate-top", type=positive, metavar="K",
                       help="run the K best settings and the baseline on the engine")  # fmt: skip
    group.add_argument("--validate-s", type=number(float, 0, exclusive=True), default=60.0, metavar="S",
                       help="the busiest S seconds of the trace are what is run (default 60)")  # fmt: skip
    group.add_argument("--validate-requests", type=positive, metavar="N", help="the first N requests, instead of those")
    group.add_argument("--validate-rounds", type=positive, default=2, metavar="N",
                       help="times that each is run on the engine (default 2)")  # fmt: skip
    group.add_argument("--rounds", type=positive, default=2, metavar="N",
                       help="of search and validation, where a recommendation does not stand (default 2)")  # fmt: skip


def _add_own_settings(group: argparse._ArgumentGroup) -> None:
    """What some policies take."""
    positive, natural = number(int, 1), number(int, 0)
    group.add_argument("--bucket", type=_bucket, metavar="SCHEME", help=" | ".join(BUCKETS) + ": length buckets")
    group.add_argument("--bucket-order", type=one_of("bucket order", BUCKET_ORDERS), metavar="ORDER",
                       help=" | ".join(BUCKET_ORDERS) + ": the bucket that is stepped")  # fmt: skip
    group.add_argument("--bins", type=positive, metavar="N", help="of predicted lengths (multi-bin)")
    group.add_argument("--min-rows", type=natural, metavar="N", help="a smaller cohort takes rows from the next ones")
    group.add_argument("--max-rows", type=positive, metavar="N", help="rows of a step (default: all resident)")
    group.add_argument("--quantum", type=natural, metavar="N", help="tokens from admission before an eviction for rank")
    group.add_argument("--min-batch", type=positive, metavar="N", help="requests that start a closed batch")
    group.add_argument("--max-wait-s", type=number(float, 0), metavar="S", help="... or this much waiting")


def _add_parts(parser: argparse.ArgumentParser) -> None:
    positive, natural = number(int, 1), number(int, 0)
    group = parser.add_argument_group("parts that go with any policy (--list parts says what each is)")
    group.add_argument("--batching", type=checked(parse_batching), metavar="NAME", help=" | ".join(BATCHINGS))
    group.add_argument("--phase", type=one_of("phase", tuple(PHASES)), metavar="NAME", help=" | ".join(PHASES))
    group.add_argument("--chunk-tokens", type=positive, metavar="N", help="tokens of a mixed step (default 512)")
    group.add_argument("--admission", type=checked(parse_admission), metavar="NAME", help=" | ".join(ADMISSIONS))
    group.add_argument("--aging", type=one_of("aging", tuple(AGEINGS)), metavar="NAME", help=" | ".join(AGEINGS))
    group.add_argument("--aging-s", type=number(float, 0), metavar="S", help="who has been here so long leads")
    group.add_argument("--aging-weight", type=number(float, 0), metavar="W", help="tokens of rank per second (linear)")
    group.add_argument("--victim", type=one_of("victim", tuple(VICTIMS)), metavar="NAME", help=" | ".join(VICTIMS))
    group.add_argument("--preemption", type=one_of("preemption", tuple(PREEMPTIONS)), metavar="NAME",
                       help=" | ".join(PREEMPTIONS))  # fmt: skip
    group.add_argument("--swap-tokens", type=natural, metavar="N", help="host memory for KV (default: no limit)")
    group.add_argument("--prefix-cache", action="store_true", help="prompts that begin the same are computed once")
    group.add_argument("--overlap", action="store_true", help="the next step is planned while one runs")
    group.add_argument("--oracle", type=checked(parse_oracle), metavar="NAME",
                       help=" | ".join(ORACLES) + ": what is known of output lengths")  # fmt: skip


def _add_memory(group: argparse._ArgumentGroup) -> None:
    positive = number(int, 1)
    group.add_argument("--kv-pool", type=one_of("KV pool", POOLS), metavar="KIND",
                       help=" | ".join(POOLS) + " (default: the layout's)")  # fmt: skip
    group.add_argument("--max-running", "--max-num-seqs", type=positive, metavar="N",
                       help=f"sequences holding KV (default: the workload's, else {DEFAULT_MAX_RUNNING})")  # fmt: skip
    group.add_argument("--max-prefill-tokens", "--max-num-batched-tokens", type=positive, default=2048, metavar="N",
                       help="prompt tokens of a step (default 2048)")  # fmt: skip
    group.add_argument("--kv-tokens", type=positive, metavar="N", help="KV memory (default: the model's or the GPU's)")
    group.add_argument("--block-tokens", type=positive, metavar="N",
                       help=f"KV block size (default: the recorded one, else {DEFAULT_BLOCK_TOKENS})")  # fmt: skip

    for flag, what in (
        ("--graph-rows", "decode steps"),
        ("--graph-tokens", "steps of prompts"),
        ("--graph-mixed", "steps of prompts beside rows"),
    ):
        group.add_argument(flag, type=_graphs, metavar="N,N,...|none",
                           help=f"graphs that {what} run as (default: the engine's, or as recorded)")  # fmt: skip


def _add_engine(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    positive = number(int, 1)
    group = parser.add_argument_group("the engine")
    group.add_argument("--model", metavar="NAME", help="folder, Hugging Face name, shape:NAME (default: embedded)")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU where there is one)")
    group.add_argument("--gpu-memory-utilization", type=number(float, 0, exclusive=True), metavar="SHARE",
                       help="of the GPU's memory that may be in use (default 0.9)")  # fmt: skip
    group.add_argument("--dtype", metavar="NAME", help="float32 | bfloat16 | float16 (default: the device's)")
    group.add_argument("--tp", "--tensor-parallel-size", type=positive, default=1, metavar="N",
                       help="GPUs that the model is divided over (default 1; paged layout)")  # fmt: skip
    return group


def add_scheduling_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of one scheduler and one engine, as for a server: those of ``bench.py``, of a single policy."""
    group = parser.add_argument_group("who goes when")
    group.add_argument("--policy", type=_policy, metavar="NAME", help=POLICY_HELP)
    _add_own_settings(group)
    _add_parts(parser)
    group = parser.add_argument_group("memory and batch")
    group.add_argument(
        "--layout", type=one_of("layout", LAYOUTS), metavar="NAME", help="padded | paged (default paged)"
    )
    _add_memory(group)
    _add_engine(parser)


def scheduler_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of :class:`~scheduler.config.SchedulerConfig` that such flags give; the rest is the engine's to find."""
    names = [f.name for f in fields(SchedulerConfig) if hasattr(args, f.name)]
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, those of ``--config`` included; whatever is wrong with them is a :class:`UsageError`."""
    parser = build_parser()
    args = parser.parse(argv)
    if args.config is not None:
        args = parser.parse([*config_flags(args.config), *argv])
    for name, value in vars(args).items():
        if name not in ("mode", "list", *FLAGS_OF_MODE[args.mode]) and value not in (parser.get_default(name), []):
            raise UsageError(_without_effect(args, name))
        if args.record_costs and name not in ("mode", *RECORDING_FLAGS) and value not in (parser.get_default(name), []):
            raise UsageError(
                f"{flag_of(name)} has no effect with --record-costs, whose plan decides it; leave it out (it takes: "
                f"{', '.join(sorted(map(flag_of, RECORDING_FLAGS - {'record_costs'})))})"
            )
        if args.claims and name not in ("mode", *CLAIMS_FLAGS) and value not in (parser.get_default(name), []):
            raise UsageError(
                f"{flag_of(name)} has no effect with --claims, whose runs decide it; leave it out (it takes: "
                f"{', '.join(sorted(map(flag_of, CLAIMS_FLAGS - {'claims'})))})"
            )
        if (
            args.mode == "gate"
            and args.workload is None
            and name not in ("mode", "list", *REPOSITORY_GATE_FLAGS)
            and value not in (parser.get_default(name), [])
        ):
            raise UsageError(
                f"{flag_of(name)} has no effect on the gate of Lockstep itself; give --workload as well for one of "
                "your own, or leave it out"
            )
    if isinstance(args.replicas, tuple) and args.mode != "tune":
        raise UsageError(f"--replicas {args.replicas[0]}:{args.replicas[1]} is a range, for --mode tune; give a number")
    if args.block_tokens is None and not (args.costs or args.replica_costs):
        args.block_tokens = DEFAULT_BLOCK_TOKENS
    if args.force and not args.costs:
        raise UsageError("--force takes costs that do not fit; give them with --costs, or leave it out")
    if args.budget_s is not None and not (args.record_costs or args.claims):
        raise UsageError(
            "--budget-s is the time of a recording or of the claims; give --record-costs or --claims as well, or leave "
            "it out"
        )
    if args.experiments is not None and args.mode == "validate" and not args.claims:
        raise UsageError("--experiments names some of the claims; give --claims as well, or leave it out")
    return args


def given_flags(argv: Sequence[str]) -> frozenset[str]:
    """The settings that a command line names, those of its ``--config`` included, whatever values it gives them."""
    parser = build_parser()
    config = parser.parse(argv).config
    unset = object()
    bare = argparse.Namespace(**{action.dest: unset for action in parser._actions if action.dest != "help"})
    found, _ = parser.parse_known_args([*([] if config is None else config_flags(config)), *argv], bare)
    return frozenset(name for name, value in vars(found).items() if value is not unset and name != "runs")


def flag_of(name: str) -> str:
    """How a setting is written on a command line."""
    return f"--{name.replace('_', '-')}"


def _without_effect(args: argparse.Namespace, name: str) -> str:
    modes = ", ".join(mode for mode, flags in FLAGS_OF_MODE.items() if name in flags)
    if name == "runs":
        return f"unexpected argument {str(args.runs[0])!r}: run folders are for --mode {modes}"
    return f"{flag_of(name)} has no effect on --mode {args.mode}; leave it out (it is for: {modes})"


class PlainLoader(yaml.SafeLoader):
    """YAML in which 1:16 is a text, a range, and not a number to the base of 60."""


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
PlainLoader.add_implicit_resolver(_NUMBERS[0], re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
PlainLoader.add_implicit_resolver(
    _NUMBERS[1], re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.?[0-9]+)(?:[eE][-+]?[0-9]+)?$"), list("-+0123456789.")
)


def config_flags(path: Path) -> list[str]:
    """A YAML mapping of flag names to values, as arguments."""
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), PlainLoader)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"--config {path} must be a mapping of flags to values, such as 'policy: sjf-bucket'")
    return _as_flags(settings)


def _as_flags(settings: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in settings.items():
        flag = "--" + str(name).replace("_", "-")
        if value is True:
            flags.append(flag)
        elif isinstance(value, list):
            flags.append(f"{flag}={','.join(map(str, value))}")
        elif value is not False and value is not None:
            flags.append(f"{flag}={value}")
    return flags


def cell_arguments(args: argparse.Namespace, flags: Mapping[str, Any]) -> argparse.Namespace:
    """``args`` with ``flags`` (names to values, as in YAML) in the place of its own, each checked as on a command line.

    Raises :class:`UsageError` for what is no flag of the mode, or has a wrong value.
    """
    allowed = FLAGS_OF_MODE[args.mode] - _OUTPUT - {"matrix", "costs"}
    for name in flags:
        if name.replace("-", "_") not in allowed:
            raise UsageError(f"a cell's {unknown_name('flag', name, sorted(allowed))}")
    given = build_parser().parse(["--mode", args.mode, *_as_flags(flags)])
    own = {name.replace("-", "_"): getattr(given, name.replace("-", "_")) for name in flags}
    return argparse.Namespace(**{**vars(args), **own})


def scheduler_config(args: argparse.Namespace, policy: str, layout: Layout, **limits: Any) -> SchedulerConfig:
    """The scheduler's settings that the flags ask for; ``limits`` are those that the workload and the model give.

    What only some policies take is given to those, if there are any among ``--policy``. A policy in a file has its
    defaults put in. Raises :class:`~scheduler.errors.ConfigError`.
    """
    settings = {name: getattr(args, name) for name in (*_COMMON_SETTINGS, *PLAIN)}
    settings["block_tokens"] = settings["block_tokens"] or DEFAULT_BLOCK_TOKENS
    config = SchedulerConfig(policy=policy, layout=layout, **{**settings, **limits})
    own = open_user_policy(config)
    taken = POLICIES[policy].settings if own is None else own.takes(config)
    others = [other for other in args.policy or () if other != policy]
    foreign = [name for name in _OWN_SETTINGS if name not in taken and any(takes(other, name) for other in others)]
    without: dict[str, Any] = dict.fromkeys(foreign)
    config = replace(config, **without)
    return config if own is None else own.settled(config)


def takes(policy: str, setting: str) -> bool:
    """Whether a policy takes one of the settings that only some do; of a user's file nothing is known, so it may."""
    return policy not in POLICIES or setting in POLICIES[policy].settings
