"""A policy that a YAML file describes: named orders, and the parts that go with any policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import yaml

from scheduler.buckets import AdaptiveSplit, parse_buckets
from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError, unknown_name
from scheduler.orders import before_share
from scheduler.policies.vtc import ByTenant
from scheduler.policy import Order, Policy
from scheduler.user_policies.files import PolicyFile
from scheduler.user_policies.named_orders import ORDERS, URGENCIES, NamedOrder

DEFAULT_QUANTUM = 128

#: keys that are settings of the scheduler too: what the command line says of them goes before what the file says
SETTINGS: dict[str, type] = {
    "batching": str, "min_batch": int, "max_wait_s": float, "phase": str, "chunk_tokens": int, "admission": str,
    "aging": str, "aging_s": float, "aging_weight": float, "victim": str, "preemption": str, "swap_tokens": int,
    "prefix_cache": bool, "overlap": bool, "oracle": str, "quantum": int,
}  # fmt: skip

#: what belongs to another setting and is left out where that is replaced
BELONGS = {"min_batch": "batching", "max_wait_s": "batching", "chunk_tokens": "phase", "swap_tokens": "preemption",
           "aging_s": "aging", "aging_weight": "aging"}  # fmt: skip

#: settings of the scheduler that a description has inside its orders
INSIDE = ("bucket", "bucket_order", "bins", "min_rows")

KEYS = ("name", "summary", "waiting", "resident", "urgency", "evictable_share", "promote_s", *SETTINGS)

_TITLES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class OrderText:
    """What a description says of one order; the options are checked and complete."""

    name: str
    options: Mapping[str, Any]

    @property
    def entry(self) -> NamedOrder:
        return ORDERS[self.name]


class PolicyDescription:
    """A YAML file, read and checked. Every mistake is a :class:`~scheduler.errors.ConfigError` that names its line."""

    def __init__(self, file: PolicyFile) -> None:
        self._file = file
        self._lines: dict[tuple[str, ...], int] = {}
        values = self._parse()
        for key in values:
            if key not in KEYS:
                raise self._error((key,), unknown_name("key", key, KEYS))
        self.name: str = self._text(values, "name", file.path.stem)
        self.summary: str = self._text(values, "summary", "")
        #: defaults for settings of the scheduler
        self.settings = {key: self._setting(key, values[key]) for key in SETTINGS if key in values}
        self._waiting = self._order(values, "waiting")
        self._resident = self._order(values, "resident")
        self._urgency = self._text(values, "urgency", "") or None
        self._evictable_share = self._number(values, "evictable_share")
        self._promote_s = self._number(values, "promote_s")
        self._check_resident()
        self._check_urgency()
        self._check_levels()

    # -- reading

    def _parse(self) -> dict[str, Any]:
        try:
            text = self._file.source.decode()
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            values = yaml.safe_load(text)
        except UnicodeDecodeError as error:
            raise ConfigError(f"policy {self._file.policy} is not UTF-8 text: {error.reason}") from error
        except yaml.MarkedYAMLError as error:
            line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
            raise ConfigError(f"policy {self._file.policy}{line}: not YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"policy {self._file.policy} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"policy {self._file.policy} must be a mapping of keys to values, such as 'waiting: remaining' "
                f"(valid keys: {', '.join(KEYS)})"
            )
        self._note_lines(node, ())
        return {str(key): value for key, value in values.items()}

    def _note_lines(self, node: yaml.MappingNode, above: tuple[str, ...]) -> None:
        for key_node, value_node in node.value:
            place = (*above, str(key_node.value))
            line = key_node.start_mark.line + 1
            if place in self._lines:
                raise ConfigError(
                    f"policy {self._file.policy}, line {line}: {place[-1]} was given before, in line "
                    f"{self._lines[place]}; keep one of them"
                )
            self._lines[place] = line
            if isinstance(value_node, yaml.MappingNode):
                self._note_lines(value_node, place)

    def _error(self, place: tuple[str, ...], message: str) -> ConfigError:
        line = self._lines.get(place) or self._lines.get(place[:1])
        where = self._file.policy if line is None else f"{self._file.policy}, line {line}"
        return ConfigError(f"policy {where}: {message}")

    def _text(self, values: Mapping[str, Any], key: str, default: str) -> str:
        return str(self._checked((key,), values[key], str)) if key in values else default

    def _number(self, values: Mapping[str, Any], key: str) -> float | None:
        if key not in values:
            return None
        value: float = self._checked((key,), values[key], float)
        if not value > 0:
            raise self._error((key,), f"{key} is {value}; must be > 0")
        return value

    def _checked(self, place: tuple[str, ...], value: Any, kind: type) -> Any:
        """``value`` if it is of ``kind``, as YAML has it: ``true`` may stand for a text, ``1e-3`` for a number."""
        if kind is str and isinstance(value, (str, int, float)):
            return str(value).lower() if isinstance(value, bool) else str(value)
        if kind is float and isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                pass
        numeric = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if kind in (int, float) and numeric:
            return value
        if kind is bool and isinstance(value, bool):
            return value
        said = "has no value" if value is None else f"is {value!r}; must be {_TITLES[kind]}"
        raise self._error(place, f"{'.'.join(place)} {said}")

    def _setting(self, key: str, value: Any) -> Any:
        value = self._checked((key,), value, SETTINGS[key])
        try:
            SchedulerConfig(**{key: value})
        except ConfigError as error:
            raise self._error((key,), str(error)) from error
        return value

    def _order(self, values: Mapping[str, Any], key: str) -> OrderText:
        given = values.get(key, "arrival")
        if not isinstance(given, dict):
            given = {"order": given}
        given = {str(option): value for option, value in given.items()}
        name = self._checked((key, "order"), given.pop("order", "arrival"), str)
        if name not in ORDERS:
            raise self._error((key, "order"), unknown_name("order", name, ORDERS))
        return OrderText(name, self._options(key, name, given))

    def _options(self, key: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
        known = ORDERS[name].options
        for option in given:
            if option not in known:
                takers = [other for other, entry in ORDERS.items() if option in entry.options]
                reason = f" (it belongs to {', '.join(takers)})" if takers else f"; it takes {_listed(known)}"
                raise self._error((key, option), f"{key}: order {name} takes no {option}{reason}")
        options: dict[str, Any] = {}
        for option, entry in known.items():
            place = (key, option)
            value = entry.default
            if option in given and entry.kind is not object:
                value = self._checked(place, given[option], entry.kind)
                if entry.names and value not in entry.names:
                    raise self._error(place, unknown_name(f"{key}.{option}", value, entry.names))
                if entry.kind is int and value < entry.least:
                    raise self._error(place, f"{key}.{option} is {value}; must be >= {entry.least}")
            elif option in given:
                value = self._buckets_text(place, given[option])
            options[option] = value
        if key == "waiting" and "min_rows" in given:
            raise self._error((key, "min_rows"), "waiting: min_rows is about the rows of a step; move it to resident")
        return options

    def _buckets_text(self, place: tuple[str, ...], value: Any) -> int | str:
        text = value if isinstance(value, int) and not isinstance(value, bool) else self._checked(place, value, str)
        try:
            parse_buckets(text)
        except ConfigError as error:
            raise self._error(place, f"{'.'.join(place)}: {error}") from error
        return text if isinstance(text, int) else str(text)

    # -- what does not go together

    def _check_resident(self) -> None:
        resident, waiting = self._resident, self._waiting
        if not resident.entry.resident:
            fit = [name for name, entry in ORDERS.items() if entry.resident]
            raise self._error(
                ("resident", "order"),
                f"resident: order {resident.name} is for waiting requests, since it changes while others are served; "
                f"use one of {', '.join(fit)}",
            )
        if resident.options.get("buckets") == "adaptive" and waiting.options.get("buckets") != "adaptive":
            raise self._error(
                ("resident", "buckets"),
                "resident.buckets adaptive follows who waits in the same buckets, and nobody does; make waiting order "
                "length with buckets adaptive too, or give resident other buckets",
            )

    def _check_urgency(self) -> None:
        urgency = self._urgency
        if urgency is None:
            for key, value in (("evictable_share", self._evictable_share), ("quantum", self.settings.get("quantum"))):
                if value is not None and not (key == "quantum" and self._counts_service):
                    raise self._error((key,), f"{key} is about evicting for rank, which needs an urgency; add urgency")
            return
        if urgency not in URGENCIES:
            raise self._error(("urgency",), unknown_name("urgency", urgency, URGENCIES))
        under = URGENCIES[urgency].resident
        if under and self._resident.name not in under:
            raise self._error(
                ("urgency",),
                f"urgency {urgency} rises as a sequence is served, which is only seen where residents are ordered by "
                f"it; make resident order {' or '.join(under)}, or use another urgency",
            )

    def _check_levels(self) -> None:
        levels = [name for name in ("waiting", "resident") if getattr(self, f"_{name}").name == "level"]
        if len(levels) == 1:
            other = "resident" if levels == ["waiting"] else "waiting"
            raise self._error(
                (levels[0], "order"),
                f"{levels[0]}: order level counts the time in which residents are served and is where a request joins; "
                f"make {other} order level too",
            )
        if self._promote_s is not None and not levels:
            raise self._error(("promote_s",), "promote_s is about levels; make waiting and resident order level")

    @property
    def _counts_service(self) -> bool:
        """Whether an order takes its quantum from the policy's."""
        return any(
            order.name == "service" and order.options["quantum"] is None for order in (self._waiting, self._resident)
        )

    # -- what it comes to

    @cached_property
    def predicts(self) -> bool:
        """Whether it asks the oracle."""
        urgency = self._urgency is not None and URGENCIES[self._urgency].predicts
        return urgency or self._waiting.entry.predicts or self._resident.entry.predicts

    def takes(self, config: SchedulerConfig) -> frozenset[str]:
        """The settings, of those that only some policies take, that mean something to this one."""
        quantum = self._urgency is not None or self._counts_service
        return frozenset({"min_batch", "max_wait_s"} | ({"quantum"} if quantum else set()))

    def settled(self, config: SchedulerConfig) -> SchedulerConfig:
        """``config`` with the file's defaults where it says nothing, and with the file's SHA-256."""
        values: dict[str, Any] = {"policy_sha256": self._file.sha256}
        for key, value in self.settings.items():
            whole = BELONGS.get(key)
            if _given(config, key):
                continue
            if whole is not None and _given(config, whole) and getattr(config, whole) != self.settings.get(whole):
                continue
            # which ageing it is follows from what is given of it
            if "aging" in (key, whole) and not _given(config, "aging") and _given(config, "aging_s", "aging_weight"):
                continue
            values[key] = value
        return replace(config, **values)

    def build(self, config: SchedulerConfig) -> Policy:
        """The policy, under a ``config`` that is :meth:`settled`."""
        for name in INSIDE:
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"policy {config.policy} takes no {name} from outside; say it in the file, with its orders"
                )
        if config.quantum is not None and "quantum" not in self.takes(config):
            raise ConfigError(
                f"policy {config.policy} takes no quantum: it has no urgency, and so evicts nobody for rank"
            )
        if (config.min_batch is None) != (config.max_wait_s is None):
            raise ConfigError(
                f"policy {config.policy}: min_batch and max_wait_s go together: a batch starts with so many, or after "
                f"so long"
            )
        waiting, resident = self._orders(config)
        urgency = None if self._urgency is None else URGENCIES[self._urgency].build(resident)
        quantum = DEFAULT_QUANTUM if config.quantum is None else config.quantum
        share = self._evictable_share
        return Policy(
            self.name,
            waiting=waiting,
            resident=resident,
            urgency=urgency,
            evictable=None if share is None else before_share(share),
            quantum=0 if urgency is None else quantum,
            min_batch=config.min_batch or 1,
            max_wait_ns=round((config.max_wait_s or 0) * 1e9),
            promote_ns=None if self._promote_s is None else round(self._promote_s * 1e9),
            ledger=waiting.counters if isinstance(waiting, ByTenant) else None,
            needs_prefix_cache=self._waiting.name == "cached-prefix",
        )

    def _orders(self, config: SchedulerConfig) -> tuple[Order, Order]:
        """Both; lengths that adapt are divided the same way for both."""
        shared = AdaptiveSplit()
        built = []
        for order, feeds in ((self._waiting, True), (self._resident, False)):
            options = {**order.options, "feeds": feeds}
            if "buckets" in options:
                setting = options["buckets"]
                options["buckets"] = shared if setting == "adaptive" else parse_buckets(setting)
            built.append(order.entry.build(config, options))
        return built[0], built[1]


def _given(config: SchedulerConfig, *keys: str) -> bool:
    return any(getattr(config, key) is not None and getattr(config, key) is not False for key in keys)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing else"
