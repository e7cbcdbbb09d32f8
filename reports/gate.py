"""The padding-waste gate: what simulated runs compute, in integers, against a baseline and against ceilings.

Simulated with an integer cost table, so that the counters are the same on every machine. Any difference fails, an
improvement too, until the baseline is updated on purpose; a ceiling holds whatever the baseline says.

What a case *is* (its requests and the settings that are asked for) is its key, and what has another key cannot be
compared. What is *made* of it, by the scheduler, a built-in policy or a policy's own file, shows in the counters.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from scheduler.config import SchedulerConfig
from scheduler.errors import unknown_name
from scheduler.request import requests_of
from scheduler.scheduler import Scheduler
from simulator.costs import IntegerCosts
from simulator.replica import simulate
from workloads.workload import Workload

SCHEMA = 2

#: what is compared
COUNTERS = (
    "linear_useful_prefill", "linear_computed_prefill", "attention_useful_prefill", "attention_computed_prefill",
    "linear_useful_decode", "linear_computed_decode", "attention_useful_decode", "attention_computed_decode",
    "graph_rows_used", "graph_rows", "steps_prefill", "steps_decode", "steps_mixed", "decode_rows",
    "decode_rows_computed", "wasted_rows", "preemptions", "recomputed_tokens", "swapped_tokens", "prefix_query_tokens",
    "prefix_hit_tokens", "finished", "rejected",
)  # fmt: skip


@dataclass(frozen=True)
class WasteKind:
    """A kind of padding waste: 1 - useful / computed, as ``docs/metrics.md`` has it."""

    useful: str
    computed: str
    slots: str


KINDS = {
    "decode": WasteKind("attention_useful_decode", "attention_computed_decode", "KV columns of decode steps"),
    "prefill": WasteKind("linear_useful_prefill", "linear_computed_prefill", "token slots of prefill steps"),
    "graph": WasteKind("graph_rows_used", "graph_rows", "rows of graphs"),
}

CEILING_FORM = "CASE[/KIND]=LIMIT, such as sjf-bucket/padded=5% or sjf-bucket/padded/prefill=fcfs/padded"


class GateError(ValueError):
    """The gate cannot run; the message is one line for the user."""


@dataclass(frozen=True)
class Case:
    """One simulated run of the gate. ``policy_sha256`` is that of the file that the policy is in, if it is in one."""

    name: str
    key: str
    """hash of the requests and of the settings that were asked for"""
    counters: dict[str, int]
    policy_sha256: str | None = None

    def waste(self, kind: str) -> Waste:
        """What it computes for nothing."""
        computed = self.counters[KINDS[kind].computed]
        return Waste(computed - self.counters[KINDS[kind].useful], computed)


@dataclass(frozen=True)
class Waste:
    """So many slots for nothing among those that were computed."""

    wasted: int
    computed: int

    @property
    def share(self) -> Fraction:
        """Exact; 0 where nothing was computed."""
        return Fraction(self.wasted, self.computed) if self.computed else Fraction(0)

    def __str__(self) -> str:
        return f"{100 * float(self.share):.2f} % ({self.wasted:,} of {self.computed:,})"


@dataclass(frozen=True)
class Ceiling:
    """The most waste of a kind that a case may have: a share of what it computes, or as much as another case has."""

    case: str
    limit: Fraction | str
    kind: str = "decode"

    @classmethod
    def parse(cls, text: str) -> Ceiling:
        """Of :data:`CEILING_FORM`. Raises :class:`GateError`."""
        case, equals, limit = (part.strip() for part in text.rpartition("="))
        if not (case and equals) or not (limit.endswith("%") or "/" in limit):
            raise GateError(f"ceiling {text!r} is not {CEILING_FORM}")
        name, slash, kind = case.rpartition("/")
        if slash and kind in KINDS:
            case = name
        else:
            kind = "decode"
        return cls(case, _percent(text, limit[:-1]) if limit.endswith("%") else limit, kind)

    def broken(self, cases: Mapping[str, Case]) -> str | None:
        """How ``cases`` break it, in a line; ``None`` where it holds. Raises :class:`GateError` for an unknown case."""
        waste = self._find(self.case, cases).waste(self.kind)
        if isinstance(self.limit, Fraction):
            limit, bound = self.limit, f"at most {float(100 * self.limit):g} % may be"
        else:
            other = self._find(self.limit, cases).waste(self.kind)
            limit, bound = other.share, f"of {self.limit} {other}, and it must not waste more"
        if waste.share <= limit:
            return None
        return f"{self.case}: {waste} of the {KINDS[self.kind].slots} are padding; {bound}"

    def _find(self, name: str, cases: Mapping[str, Case]) -> Case:
        if name not in cases:
            raise GateError(f"ceiling of {self.case}: {unknown_name('case', name, cases)}")
        return cases[name]


def _percent(text: str, number: str) -> Fraction:
    try:
        share = Fraction(number) / 100
    except (ValueError, ZeroDivisionError):
        raise GateError(f"ceiling {text!r}: {number!r} is not a number of percent") from None
    if not 0 <= share < 1:
        raise GateError(f"ceiling {text!r}: {number} % is out of range; must be at least 0 and below 100")
    return share


@dataclass(frozen=True)
class Difference:
    """A counter that is not what the baseline says."""

    case: str
    counter: str
    baseline: int
    now: int


@dataclass(frozen=True)
class GateResult:
    """What the gate found.

    ``stale``: why a comparison could not be made. ``broken``: ceilings that do not hold. ``changed``: policies' files
    that are not those of the baseline, and differ in counters. A line each.
    """

    cases: list[Case]
    ceilings: Sequence[Ceiling] = ()
    differences: list[Difference] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failed and not self.stale

    @property
    def failed(self) -> bool:
        """Whether something is known to be otherwise than it must be, as opposed to what could not be compared."""
        return bool(self.differences or self.broken)


def run_case(name: str, workload: Workload, config: SchedulerConfig, asked: Mapping[str, Any]) -> Case:
    """Simulate ``workload`` under ``config``, which was made of the settings ``asked``."""
    requests = requests_of(
        workload.rows, config.block_tokens, workload.prefix_block_tokens, prefix_cache=config.prefix_cache
    )
    scheduler = simulate(requests, Scheduler(config), IntegerCosts())
    return Case(
        name,
        _key(workload, asked),
        {name: getattr(scheduler.counters, name) for name in COUNTERS},
        scheduler.config.policy_sha256,
    )


def _key(workload: Workload, asked: Mapping[str, Any]) -> str:
    text = json.dumps([workload.sha256(), asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compare(cases: list[Case], ceilings: Sequence[Ceiling], baseline: Path) -> GateResult:
    """Compare ``cases`` with ``baseline``, and judge them by ``ceilings``.

    Raises :class:`GateError` for a file that is no baseline, and for a ceiling of a case that is not there.
    """
    by_name = {case.name: case for case in cases}
    result = GateResult(cases, ceilings)
    result.broken.extend(line for ceiling in ceilings if (line := ceiling.broken(by_name)) is not None)
    recorded = _read(baseline, result.stale)
    if recorded is None:
        return result
    for case in cases:
        before = recorded.get(case.name)
        reason = _incomparable(case, before)
        if before is None or reason is not None:
            result.stale.append(f"{case.name} {reason}")
            continue
        differences = _differences(case, before.counters)
        result.differences.extend(differences)
        if differences and case.policy_sha256 != before.policy_sha256:
            result.changed.append(f"{case.name}: the policy's file is not the one that the baseline was recorded with")
    result.stale.extend(f"{name} is in the baseline, and is not run" for name in sorted(recorded.keys() - by_name))
    return result


def _incomparable(case: Case, before: Case | None) -> str | None:
    if before is None:
        return "is not in the baseline"
    if before.key != case.key:
        return "was recorded for another workload or other settings"
    if before.counters.keys() != case.counters.keys():
        return "was recorded with other counters"
    return None


def _differences(case: Case, before: Mapping[str, int]) -> list[Difference]:
    return [
        Difference(case.name, counter, before[counter], now)
        for counter, now in case.counters.items()
        if before[counter] != now
    ]


def _read(baseline: Path, stale: list[str]) -> dict[str, Case] | None:
    """The recorded cases; ``None``, and the reason in ``stale``, where there are none to compare with."""
    try:
        data = json.loads(baseline.read_text(encoding="utf-8"))
        schema = data["schema"]
        if schema == SCHEMA:
            return {name: _recorded(name, case) for name, case in data["cases"].items()}
        if not isinstance(schema, int) or "cases" not in data:
            raise KeyError("schema")
    except FileNotFoundError:
        stale.append(f"{baseline} does not exist")
        return None
    except OSError as error:
        raise GateError(f"{baseline} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GateError(
            f"{baseline} is no baseline of the gate ({type(error).__name__}: {error}); restore it, or move it away and "
            "make it anew with --update-baseline"
        ) from error
    stale.append(f"{baseline} was recorded by another version of Lockstep (schema {schema}; this one's is {SCHEMA})")
    return None


def _recorded(name: str, case: Mapping[str, Any]) -> Case:
    counters = case["counters"]
    if not isinstance(case["key"], str) or not all(type(count) is int for count in counters.values()):
        raise TypeError(f"case {name}: a key is a text and a counter a whole number")
    return Case(name, case["key"], counters, case.get("policy_sha256"))


def write_baseline(cases: Iterable[Case], baseline: Path) -> None:
    """Record ``cases`` as the baseline: all of it or nothing. Raises :class:`GateError`."""
    data = {"schema": SCHEMA, "cases": {case.name: _as_json(case) for case in cases}}
    target = baseline.resolve()
    beside = target.with_name(f"{target.name}.part")
    try:
        beside.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, target)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise GateError(f"{baseline} cannot be written: {error.strerror or error}") from error


def _as_json(case: Case) -> dict[str, Any]:
    of_file = {} if case.policy_sha256 is None else {"policy_sha256": case.policy_sha256}
    return {"key": case.key, **of_file, "counters": case.counters}
