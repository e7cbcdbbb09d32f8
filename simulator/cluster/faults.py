"""What goes wrong: a replica dies and returns, or is slow for a time. Known beforehand, and so part of the conditions
that a replica's stretches end at (:class:`~simulator.replica.Conditions`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml

from scheduler.plan import NEVER
from simulator.cluster.errors import ClusterError

#: nanoseconds of a second
S = 1_000_000_000

FORM = "die:REPLICA@SECONDS[+DOWN_SECONDS] or slow:REPLICA@SECONDS+FOR_SECONDSxFACTOR"
_NUMBER = r"(\d+(?:\.\d+)?)"
_DIE = re.compile(rf"die:(\d+)@{_NUMBER}(?:\+{_NUMBER})?")
_SLOW = re.compile(rf"slow:(\d+)@{_NUMBER}\+{_NUMBER}x{_NUMBER}")


@dataclass(frozen=True)
class Fault:
    """One fault of a replica. ``die``: it and all its KV are lost at ``at_s``, and it takes requests again ``for_s``
    later (``None``: never). ``slow``: steps that begin within ``for_s`` of ``at_s`` take ``factor`` times as long."""

    kind: Literal["die", "slow"]
    replica: int
    at_s: float
    for_s: float | None = None
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("die", "slow"):
            raise ClusterError(f"fault {self.kind!r} is unknown (valid: die, slow)")
        if self.replica < 0 or not self.at_s > 0:
            raise ClusterError(f"fault {self}: the replica must be >= 0 and the time > 0")
        if self.for_s is not None and not self.for_s > 0:
            raise ClusterError(f"fault {self}: it lasts {self.for_s:g} s; must be > 0")
        if self.kind == "slow" and (self.for_s is None or not self.factor > 0):
            raise ClusterError(f"fault {self}: a slow replica needs a duration and a factor > 0")

    def __str__(self) -> str:
        duration = "" if self.for_s is None else f"+{self.for_s:g}"
        factor = f"x{self.factor:g}" if self.kind == "slow" else ""
        return f"{self.kind}:{self.replica}@{self.at_s:g}{duration}{factor}"

    @property
    def at_ns(self) -> int:
        return round(self.at_s * S)

    @property
    def until_ns(self) -> int:
        """When it is over; never for one that does not return."""
        return NEVER if self.for_s is None else self.at_ns + round(self.for_s * S)


class ReplicaConditions:
    """What one replica goes through that starts at ``start_ns``."""

    def __init__(self, faults: Iterable[Fault], start_ns: int) -> None:
        faults = list(faults)
        deaths = [fault.at_ns for fault in faults if fault.kind == "die" and fault.at_ns > start_ns]
        self._slow = [fault for fault in faults if fault.kind == "slow"]
        self.ends_ns = min(deaths, default=NEVER)

    def factor_at(self, time_ns: int) -> float:
        factor = 1.0
        for fault in self._slow:
            if fault.at_ns <= time_ns < fault.until_ns:
                factor *= fault.factor
        return factor

    def next_change_ns(self, time_ns: int) -> int:
        times = [time for fault in self._slow for time in (fault.at_ns, fault.until_ns) if time > time_ns]
        return min(times, default=NEVER)


def read_faults(spec: str, replicas: int) -> tuple[Fault, ...]:
    """Faults from a YAML file, or from a text such as ``die:1@30+20,slow:0@10+60x2``; of ``replicas`` replicas.

    The file holds a list of mappings with ``kind``, ``replica``, ``at_s``, ``for_s`` and ``factor``. Raises
    :class:`ClusterError`.
    """
    is_file = spec.endswith((".yaml", ".yml"))
    faults = _from_file(Path(spec)) if is_file else tuple(_from_text(part.strip()) for part in spec.split(","))
    for fault in faults:
        if fault.replica >= replicas:
            raise ClusterError(f"fault {fault}: there is no replica {fault.replica} (valid: 0 to {replicas - 1})")
    deaths = sorted((f.replica, f.at_ns, f.until_ns) for f in faults if f.kind == "die")
    for (replica, _, until), (other, at, _) in pairwise(deaths):
        if replica == other and at <= until:
            raise ClusterError(f"replica {replica} is to die at {at / S:g} s, before it has returned")
    return tuple(sorted(faults, key=lambda fault: (fault.at_ns, fault.replica)))


def _from_text(text: str) -> Fault:
    if found := _DIE.fullmatch(text):
        replica, at, down = found.groups()
        return Fault("die", int(replica), float(at), None if down is None else float(down))
    if found := _SLOW.fullmatch(text):
        replica, at, duration, factor = found.groups()
        return Fault("slow", int(replica), float(at), float(duration), float(factor))
    raise ClusterError(f"fault {text!r} is not {FORM}, nor a .yaml file")


def _from_file(path: Path) -> tuple[Fault, ...]:
    entries = read_yaml(path, "faults")
    if not isinstance(entries, list):
        raise ClusterError(f"faults {path} must be a list, such as '- {{kind: die, replica: 1, at_s: 30, for_s: 20}}'")
    return tuple(_from_mapping(entry, f"faults {path}, entry {place}") for place, entry in enumerate(entries, 1))


def _from_mapping(entry: Any, where: str) -> Fault:
    types: dict[str, Any] = {
        "kind": str,
        "replica": int,
        "at_s": (int, float),
        "for_s": (int, float),
        "factor": (int, float),
    }
    if not isinstance(entry, Mapping):
        raise ClusterError(f"{where}: must be a mapping with {', '.join(types)}")
    for name, value in entry.items():
        if name not in types:
            raise ClusterError(f"{where}: {name!r} is unknown (valid: {', '.join(types)})")
        if not isinstance(value, types[name]) or isinstance(value, bool):
            raise ClusterError(f"{where}: {name} is {value!r}")
    lacking = [name for name in ("kind", "replica", "at_s") if name not in entry]
    if lacking:
        raise ClusterError(f"{where}: {lacking[0]} is not given")
    return Fault(**entry)


def read_yaml(path: Path, what: str) -> Any:
    """A YAML file's content. Raises :class:`ClusterError`."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClusterError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClusterError(f"{what} {path} is not YAML: {' '.join(str(error).split())}") from error
