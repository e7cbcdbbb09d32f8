"""What is searched: knobs, each a flag with the values that it may take, and which of them go together."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Final

import yaml

from core.arguments import (
    DEFAULT_MAX_RUNNING,
    FLAGS_OF_MODE,
    PLAIN,
    PlainLoader,
    UsageError,
    cell_arguments,
    flag_of,
    scheduler_config,
)
from scheduler.buckets import equal_mass_buckets
from scheduler.composition import compose
from scheduler.errors import ConfigError, PolicyError, unknown_name
from scheduler.policies import POLICIES
from simulator.cluster.autoscaler import AutoscaleSettings
from simulator.cluster.errors import ClusterError
from simulator.cluster.routers import ROUTERS
from tuning.errors import TuningError
from tuning.setting import Setting, Value

#: how a choice is written that leaves a flag out
DEFAULT: Final = "default"
#: knobs of an autoscaler, by the names of its YAML
AUTOSCALER: Final = "autoscale."
#: the knob that says whether the number of replicas follows the load
SCALING: Final = "scaling"
FIXED: Final = "fixed"
FOLLOWING: Final = "autoscale"

#: decimal digits of a value from a range of real numbers
_DIGITS = 3


@dataclass(frozen=True)
class Knob:
    """A flag and the values that it may take: ``choices`` (``None`` leaves the flag out), or a range from ``low`` to
    ``high``, whole numbers or real ones, searched on a logarithmic scale where ``low`` is more than 0."""

    name: str
    choices: tuple[Value | None, ...] = ()
    low: float = 0
    high: float = 0
    whole: bool = True

    @property
    def is_range(self) -> bool:
        return not self.choices

    @property
    def size(self) -> float:
        """How many values there are."""
        if self.choices:
            return len(self.choices)
        return self.high - self.low + 1 if self.whole else math.inf

    def drawn(self, rng: Random) -> Value | None:
        """A random value."""
        if self.choices:
            return self.choices[rng.randrange(len(self.choices))]
        if self.low > 0:
            return self.rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.rounded(rng.uniform(self.low, self.high))

    def rounded(self, value: float) -> Value:
        """The value of the range that is nearest, of real numbers one that people can read."""
        if not self.whole:
            value = float(f"{value:.{_DIGITS}g}")
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value

    def levels(self, count: int) -> tuple[Value | None, ...]:
        """At most ``count`` values that cover it: of a range evenly on its scale."""
        if self.choices:
            step = max(1, math.ceil(len(self.choices) / count))
            return self.choices[::step]
        ends = (math.log(self.low), math.log(self.high)) if self.low > 0 else (self.low, self.high)
        places = [ends[0] + (ends[1] - ends[0]) * place / max(1, count - 1) for place in range(count)]
        values = (self.rounded(math.exp(place) if self.low > 0 else place) for place in places)
        return tuple(dict.fromkeys(values))

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(DEFAULT if value is None else str(value) for value in self.choices)
        return f"{self.low:g} to {self.high:g}"


_FIRST = ("policy", "phase", "chunk_tokens", "replicas", SCALING)


def _place(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


class Space:
    """The knobs of a search, and the settings that they make.

    ``args`` are the command's: what they name is the same for every setting.
    """

    def __init__(self, knobs: Sequence[Knob], args: argparse.Namespace) -> None:
        #: those that others hang on come first
        self.knobs = tuple(sorted(knobs, key=lambda knob: _place(knob.name)))
        self._args = args
        self._fixed = {knob.name: knob.choices[0] for knob in knobs if len(knob.choices) == 1}

    @property
    def free(self) -> tuple[Knob, ...]:
        """The knobs that have more than one value."""
        return tuple(knob for knob in self.knobs if knob.size > 1)

    def knob(self, name: str) -> Knob | None:
        return next((knob for knob in self.knobs if knob.name == name), None)

    def setting(self, values: Mapping[str, Value | None]) -> Setting:
        """The setting that ``values`` of the free knobs make.

        A value that has no place there, such as a bucket beside a policy without buckets, is left out, so that equal
        schedulers are one setting.
        """
        found: dict[str, Value] = {}
        for knob in self.knobs:
            value = self._fixed.get(knob.name, values.get(knob.name))
            if value is not None and self._has_effect(found, knob.name) and self._possible({**found, knob.name: value}):
                found[knob.name] = value
        if "oracle" not in found and self._possible({**found, "oracle": "history"}):
            found["oracle"] = "history"  # nobody who serves knows the true lengths
        return Setting.of(found)

    def settings(self, most: int) -> list[dict[str, Value | None]] | None:
        """The values of every setting, each setting once; ``None`` if there are more than ``most`` combinations."""
        if math.prod(knob.size for knob in self.free) > most:
            return None
        values = [knob.choices or tuple(range(int(knob.low), int(knob.high) + 1)) for knob in self.free]
        names = [knob.name for knob in self.free]
        found: dict[str, dict[str, Value | None]] = {}
        for one in product(*values):
            chosen = dict(zip(names, one, strict=True))
            found.setdefault(self.setting(chosen).key, chosen)
        return list(found.values())

    def drawn(self, rng: Random) -> dict[str, Value | None]:
        """A random value for each free knob."""
        return {knob.name: knob.drawn(rng) for knob in self.free}

    def neighbour(self, values: Mapping[str, Value | None], rng: Random) -> dict[str, Value | None]:
        """``values`` with one or two of them drawn again."""
        again = rng.sample(self.free, k=min(len(self.free), 1 + rng.randrange(2)))
        return {**values, **{knob.name: knob.drawn(rng) for knob in again}}

    def starts(self) -> Iterator[dict[str, Value | None]]:
        """Where a search begins: each policy as it is by default, all else as the command or the default has it."""
        policies = self.knob("policy")
        for policy in policies.choices if policies is not None else (None,):
            yield {knob.name: self._default(knob) if knob.name != "policy" else policy for knob in self.free}

    @property
    def start(self) -> Setting:
        """The first setting that a search begins with."""
        return self.setting(next(self.starts()))

    def _default(self, knob: Knob) -> Value | None:
        if knob.choices:
            usual = {"max_prefill_tokens": 2048, "max_running": DEFAULT_MAX_RUNNING}
            wanted = usual.get(knob.name)
            return wanted if wanted in knob.choices else knob.choices[0] if None not in knob.choices else None
        return knob.rounded({"max_running": DEFAULT_MAX_RUNNING}.get(knob.name, math.sqrt(knob.low * knob.high)))

    def arguments(self, setting: Setting) -> argparse.Namespace:
        """The command's arguments with the setting's flags in them, as ``--mode sim`` would have them."""
        flags = {name: value for name, value in setting.flags if name != SCALING and not name.startswith(AUTOSCALER)}
        if "policy" in flags:
            flags["policy"] = [flags["policy"]]  # type: ignore[assignment]
        if self.scaling(setting) is not None:
            flags.pop("replicas", None)
        replicas = self._args.replicas if isinstance(self._args.replicas, int) else None
        args = argparse.Namespace(**{**vars(self._args), "replicas": replicas, **flags})
        if args.replicas == 1:
            args.replicas = None
        return args

    def scaling(self, setting: Setting) -> AutoscaleSettings | None:
        """The autoscaler of a setting that has one."""
        values = setting.values
        knob = self.knob("replicas")
        if values.get(SCALING) != FOLLOWING or knob is None:
            return None
        least = int(knob.low if knob.is_range else min(value for value in knob.choices if isinstance(value, int)))
        most = int(values.get("replicas", least))
        own: dict[str, Any] = {name.removeprefix(AUTOSCALER): v for name, v in values.items() if AUTOSCALER in name}
        return AutoscaleSettings(**{"min_replicas": least, "max_replicas": most, "initial_replicas": most, **own})

    def _has_effect(self, found: Mapping[str, Value], name: str) -> bool:
        """Whether a knob means anything beside those found before it."""
        if name in ("router", SCALING):
            return found.get("replicas", 1) != 1
        if name.startswith(AUTOSCALER):
            return found.get(SCALING) == FOLLOWING
        # a mixed step's prompts are limited by its own budget
        return not (name == "max_prefill_tokens" and found.get("phase") == "mixed" and "chunk_tokens" in found)

    def completed(self, setting: Setting) -> Setting:
        """A setting of the caller's, with what the command fixes for every one, where that goes with it."""
        found = setting
        for name, value in self._fixed.items():
            if name not in found.values and value is not None and self._has_effect(found.values, name):
                more = found.replaced(name, value)
                found = more if self._possible(more.values) else found
        return found

    def _possible(self, flags: Mapping[str, Value]) -> bool:
        args = self.arguments(Setting.of(flags))
        if args.bucket is not None and equal_mass_buckets(args.bucket) is not None:
            args.bucket = "pow2"  # the edges are the workload's to say
        layout = (args.layout or ["paged"])[0]
        try:
            policy = (args.policy or ["fcfs"])[0]
            limits = {"max_running": args.max_running or DEFAULT_MAX_RUNNING, "length_quantiles": (1,)}
            compose(scheduler_config(args, policy, layout, **limits))
        except (ConfigError, PolicyError):
            return False
        router = args.router
        return router is None or not ROUTERS[router].needs_prefix_cache or args.prefix_cache


# -- from what the user says


def build_space(
    args: argparse.Namespace, given: frozenset[str], *, tenants: bool, deadlines: bool, kv_tokens: int | None,
    prompt_tokens: int | None = None,
) -> Space:  # fmt: skip
    """The space for a command: ``--space``, and for what neither it nor the command says the usual ranges.

    ``given`` are the flags that the command names. ``tenants`` and ``deadlines``: whether the workload has any, for
    policies that go by them. ``kv_tokens``: the memory of the hardware, where less of it may be tried.
    ``prompt_tokens``: the most of a step that costs were recorded with, so that no more are tried. Raises
    :class:`TuningError` for ranges that contradict themselves, each other or the command.
    """
    asked = {} if args.space is None else read_space(args.space)
    for name in asked:
        if name in given:
            raise TuningError(
                f"--space {args.space}: {name} is also given as {flag_of(name)}; leave one of the two out"
            )
    fixed = {name: getattr(args, name) for name in PLAIN if name in given}
    usual = _usual(args, tenants=tenants, deadlines=deadlines, kv_tokens=kv_tokens, prompt_tokens=prompt_tokens)
    # what the command fixes goes to the policies that take it, as a knob with one value
    args = argparse.Namespace(**{**vars(args), **{name: PLAIN[name] for name in fixed}})
    knobs: dict[str, Knob] = {}
    for name, knob in usual.items():
        if name in fixed:
            knobs[name] = Knob(name, (fixed[name],))
        elif name == "policy" and args.policy is not None:
            knobs[name] = Knob(name, tuple(args.policy))
        elif name in asked or name not in given or name == "replicas":
            knobs[name] = _knob(name, asked[name], args) if name in asked else knob
    knobs |= {name: Knob(name, (value,)) for name, value in fixed.items() if name not in knobs}
    for name, ranges in asked.items():
        if name not in knobs:
            knobs[name] = _knob(name, ranges, args)
    if "replicas" in knobs and knobs["replicas"].size > 1 and "replicas" not in usual:
        knobs |= _cluster_knobs(args, given, knobs)
    space = Space(list(knobs.values()), args)
    _check(space, asked, args)
    return space


def read_space(path: Path) -> dict[str, Any]:
    """A YAML mapping of flags to a range ``A:B``, a list of values, or a value."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), PlainLoader)
    except OSError as error:
        raise TuningError(f"--space {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TuningError(f"--space {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not found:
        raise TuningError(f"--space {path} must be a mapping of flags to ranges, such as 'max-running: 16:256'")
    return {str(name).replace("-", "_"): value for name, value in found.items()}


#: beside whom a policy that goes by it makes sense
_NEEDING = {"vtc": "tenants", "edf": "deadlines", "lpm": "a prefix cache", "multi-bin": "quantiles of a benchmark"}
#: what is searched where nobody says otherwise; a list of choices, or both ends
_BUCKETS: tuple[Value | None, ...] = (
    None, 16, 32, 64, 128, 256, 512, "pow2", "equal-mass:4", "equal-mass:8", "adaptive",
)  # fmt: skip
_PARTS: dict[str, tuple[Value | None, ...]] = {
    "bucket": _BUCKETS,
    "bucket_order": (None, "lowest", "fullest", "oldest"),
    "aging_s": (None, 2, 5, 10, 30, 60),
    "phase": (None, "mixed", "decode-first"),
    "chunk_tokens": (None, 256, 512, 1024, 2048),
    "max_prefill_tokens": (512, 1024, 2048, 4096, 8192),
    "admission": (None, "reserve-max", "peak-future", "quantile:0.9"),
    "max_running": (16, 32, 48, 64, 96, 128, 192, 256),
}
#: shares of the hardware's KV memory
_KV_SHARES = (0.5, 0.75, 1.0)


def _usual(
    args: argparse.Namespace, *, tenants: bool, deadlines: bool, kv_tokens: int | None, prompt_tokens: int | None
) -> dict[str, Knob]:
    there = {"tenants": tenants, "deadlines": deadlines, "a prefix cache": bool(args.prefix_cache)}
    policies = tuple(name for name in POLICIES if name not in _NEEDING or there.get(_NEEDING[name], False))
    knobs = {"policy": Knob("policy", policies)}
    knobs |= {name: Knob(name, choices) for name, choices in _PARTS.items()}
    if prompt_tokens is not None:
        recorded = tuple(value for value in _PARTS["max_prefill_tokens"] if int(value or 0) <= prompt_tokens)
        knobs["max_prefill_tokens"] = Knob("max_prefill_tokens", recorded or _PARTS["max_prefill_tokens"][:1])
    if kv_tokens is not None:
        knobs["kv_tokens"] = Knob("kv_tokens", tuple(round(kv_tokens * share) for share in _KV_SHARES))
    if isinstance(args.replicas, tuple):
        knobs["replicas"] = Knob("replicas", low=args.replicas[0], high=args.replicas[1])
        knobs |= _cluster_knobs(args, frozenset(), knobs)
    return knobs


def _cluster_knobs(args: argparse.Namespace, given: frozenset[str], there: Mapping[str, Knob]) -> dict[str, Knob]:
    """What comes with a range of replicas."""
    routers = tuple(name for name, router in ROUTERS.items() if args.prefix_cache or not router.needs_prefix_cache)
    knobs = [
        Knob("router", (args.router,) if args.router is not None else routers),
        Knob(SCALING, (FIXED, FOLLOWING)),
        Knob(f"{AUTOSCALER}target_ongoing_requests", (None, 4, 8, 16, 32, 64, 128)),
        Knob(f"{AUTOSCALER}upscale_delay_s", (None, 0, 10, 60)),
        Knob(f"{AUTOSCALER}downscale_delay_s", (None, 60, 300)),
    ]
    return {knob.name: knob for knob in knobs if knob.name not in given and knob.name not in there}


def _knob(name: str, ranges: Any, args: argparse.Namespace) -> Knob:
    """A knob as the user gives it."""
    settings = sorted(FLAGS_OF_MODE["sim"] & (set(vars(args)) - {"workload", "costs", "slo", "out", "name", "config"}))
    scaling = [f"{AUTOSCALER}{field.name}" for field in fields(AutoscaleSettings)]
    if name not in (*settings, *scaling, SCALING):
        raise TuningError(f"--space {args.space}: {unknown_name('knob', name, [*settings, *scaling, SCALING])}")
    if isinstance(ranges, str) and ":" in ranges and _is_range(ranges):
        low, high = (float(end) for end in ranges.split(":"))
        if low > high:
            raise TuningError(
                f"--space {args.space}: {name} is from {low:g} to {high:g}: the low end is above the high"
            )
        whole = all(end.strip().lstrip("-").isdecimal() for end in ranges.split(":"))
        ends: list[Any] = [int(low), int(high)] if whole else [low, high]
        for end in ends:
            _parsed(name, end, args)
        return Knob(name, low=low, high=high, whole=whole)
    values = ranges if isinstance(ranges, list) else [ranges]
    if not values:
        raise TuningError(f"--space {args.space}: {name} has no values")
    found = tuple(None if value in (None, DEFAULT) else _parsed(name, value, args) for value in values)
    return Knob(name, tuple(dict.fromkeys(found)))


def _is_range(text: str) -> bool:
    try:
        return len([float(end) for end in text.split(":")]) == 2
    except ValueError:
        return False


def _parsed(name: str, value: Any, args: argparse.Namespace) -> Value:
    """``value`` as the command line takes it; :class:`TuningError` where it does not."""
    if name.startswith(AUTOSCALER):
        try:
            AutoscaleSettings(**{"max_replicas": 1 << 20, name.removeprefix(AUTOSCALER): value})
        except (ClusterError, TypeError) as error:
            raise TuningError(f"--space {args.space}: {name}: {error}") from None
        return value  # type: ignore[no-any-return]
    if name == SCALING:
        if value not in (FIXED, FOLLOWING):
            raise TuningError(f"--space {args.space}: {unknown_name(SCALING, str(value), (FIXED, FOLLOWING))}")
        return str(value)
    if isinstance(value, bool):
        return value
    try:
        found = getattr(cell_arguments(args, {name: value}), name)
    except (UsageError, argparse.ArgumentTypeError) as error:
        raise TuningError(f"--space {args.space}: {name} {value}: {error}") from None
    found = found[0] if isinstance(found, list) else found
    return int(found) if isinstance(found, float) and found.is_integer() else found


def _check(space: Space, asked: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Refuse a knob that no other value leaves any effect."""
    for name in asked:
        knob = space.knob(name)
        if knob is None or name == "policy" or knob.choices == (None,):
            continue
        values = [value for value in knob.levels(3) if value is not None]
        if not any(_fits(space, name, value) for value in values):
            others = [other for other in ("policy", "phase", "replicas", SCALING) if other != name]
            named = "; ".join(f"{other} is {space.knob(other)}" for other in others if space.knob(other) is not None)
            raise TuningError(
                f"--space {args.space}: {name} ({knob}) has no effect on any setting{f': {named}' if named else ''}; "
                f"leave it out, or add what it belongs to"
            )


def _fits(space: Space, name: str, value: Value) -> bool:
    """Whether any policy and phase takes ``value``."""
    wide = ("policy", "phase", "replicas", SCALING)
    lists: list[Sequence[Value | None]] = [
        knob.levels(len(knob.choices) or 2) if (knob := space.knob(other)) is not None and other != name else (None,)
        for other in wide
    ]
    for combination in product(*lists):
        values = dict(zip(wide, combination, strict=True))
        if name in space.setting({**values, name: value}).values:
            return True
    return False
