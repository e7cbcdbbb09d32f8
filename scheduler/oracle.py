"""What a policy may know of output lengths: an axis of an experiment, never the request itself.

An oracle is asked once about each request, when it is submitted, and answers with a ladder of estimates: the first is
its prediction, and when the output outgrows that, the next one is (see :func:`prediction`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from hashlib import blake2b
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from scheduler.buckets import PowersOfTwo
from scheduler.errors import ConfigError, unknown_name
from scheduler.quantiles import QuantileTable, RecentLengths
from scheduler.sequence import Sequence

if TYPE_CHECKING:
    from scheduler.config import SchedulerConfig

#: the oracles by name, one line each
ORACLES = {
    "true": "the true output length, which only a benchmark can know",
    "none": "no prediction: the declared max_tokens",
    "noisy:TAU[:SEED]": "the true length blurred to a rank correlation (Kendall's tau, 0 to 1) with the truth",
    "history": "what the tenant's requests of that prompt length came to before, learned as they finish",
}

#: what ``history`` estimates one after the other: these quantiles of what has finished, then max_tokens
HISTORY_SHARES = (0.5, 0.75, 0.9, 0.97)
#: a group of fewer finished requests than this says nothing yet
HISTORY_LEAST = 8
HISTORY_WINDOW = 1000

_NORMAL = NormalDist()


class LengthOracle(Protocol):
    """Predicts output lengths."""

    def estimates(self, sequence: Sequence) -> tuple[int, ...]:
        """Ever larger estimates of the output tokens of ``sequence`` in all, at least 1.

        The last one is not exceeded: it is the true length at least, or what the request declares.
        """

    def finished(self, sequence: Sequence) -> None:
        """``sequence`` has finished (it was not aborted), with ``sequence.output_tokens`` tokens."""


def prediction(estimates: tuple[int, ...], output_tokens: int) -> int:
    """Predicted output tokens in all of a sequence that has ``output_tokens`` so far and is not at its end."""
    for estimate in estimates:
        if estimate > output_tokens:
            return estimate
    return output_tokens + 1


class _Stateless:
    """An oracle that learns nothing while it runs."""

    def finished(self, sequence: Sequence) -> None:
        """Nothing is learned."""


class TrueLengths(_Stateless):
    """Knows the hidden length that a benchmark's row carries; ``max_tokens`` where there is none."""

    def estimates(self, sequence: Sequence) -> tuple[int, ...]:
        return (sequence.request.planned_output_tokens,)


class NoLengths(_Stateless):
    """Knows nothing but what was declared: ``max_tokens``."""

    def estimates(self, sequence: Sequence) -> tuple[int, ...]:
        return (sequence.request.max_tokens,)


class NoisyLengths(_Stateless):
    """The true length, blurred: Kendall's ``tau`` between truth and first estimate, with the same distribution.

    A Gaussian copula: the true length's place in the distribution ``quantiles`` as a normal deviate z is mixed with
    noise e, and rho z + sqrt(1 - rho^2) e read back as a length. For normal deviates tau = 2 asin(rho) / pi (Kruskal,
    "Ordinal measures of association", JASA 53, 1958). z and e come from a hash of the request's id and ``seed``.

    Lengths that many requests have cover a range of places, and a request takes a random one of them (on average the
    mid-rank). ``tau`` is then that of the places, equal lengths in random order; tau-b of the lengths themselves is
    within a few hundredths. Taking the mid-rank itself would squeeze the distribution and raise tau-b: a request of a
    frequent length would never be mistaken. At ``tau`` 1 equal lengths get equal estimates.

    A request that outgrows its estimate is estimated twice as long, and so on up to ``max_tokens``.
    """

    def __init__(self, quantiles: tuple[int, ...], tau: float, seed: int = 0) -> None:
        self._table = QuantileTable(quantiles)
        self._seed = seed
        self._signal = math.sin(math.pi * tau / 2)
        self._noise = math.sqrt(1 - self._signal * self._signal)

    def estimates(self, sequence: Sequence) -> tuple[int, ...]:
        request = sequence.request
        place, noise = _uniforms(request.id, self._seed)
        truth = _NORMAL.inv_cdf(self._table.share(request.planned_output_tokens, place))
        blurred = self._signal * truth + self._noise * _NORMAL.inv_cdf(noise)
        return tuple(_doubling(self._table.length(_NORMAL.cdf(blurred)), request.max_tokens))


class LearnedLengths:
    """Learns while it runs: what finished requests of the same tenant and prompt length came to.

    A group is a tenant's requests of one class of prompt lengths (up to a power of two); where fewer than
    :data:`HISTORY_LEAST` of it have finished all of the tenant's count, and else everybody's. The estimates are
    :data:`HISTORY_SHARES` of the group's last :data:`HISTORY_WINDOW` output lengths, and last ``max_tokens``.
    """

    def __init__(self) -> None:
        self._finished: dict[Hashable, RecentLengths] = {}

    def estimates(self, sequence: Sequence) -> tuple[int, ...]:
        most = sequence.request.max_tokens
        for group in _groups(sequence):
            recent = self._finished.get(group)
            if recent is not None and len(recent) >= HISTORY_LEAST:
                ladder = {length for share in HISTORY_SHARES if (length := recent.quantile(share)) < most}
                return (*sorted(ladder), most)
        return (most,)

    def finished(self, sequence: Sequence) -> None:
        for group in _groups(sequence):
            self._finished.setdefault(group, RecentLengths(HISTORY_WINDOW)).add(sequence.output_tokens)


def _groups(sequence: Sequence) -> tuple[Hashable, ...]:
    tenant = sequence.request.tenant
    return (tenant, PowersOfTwo().key(sequence.prompt_tokens)), (tenant,), ()


def _doubling(first: int, most: int) -> Iterator[int]:
    while first < most:
        yield first
        first *= 2
    yield most


def _uniforms(request_id: str, seed: int) -> tuple[float, float]:
    """Two numbers in (0, 1) that depend on nothing but the id and the seed."""
    digest = blake2b(f"{seed}:{request_id}".encode(), digest_size=16).digest()
    first, second = (int.from_bytes(part, "little") >> 12 for part in (digest[:8], digest[8:]))
    return (first + 0.5) / (1 << 52), (second + 0.5) / (1 << 52)


class OracleName(NamedTuple):
    """What the setting ``oracle`` says. ``tau`` and ``seed`` are ``noisy``'s."""

    kind: Literal["true", "none", "noisy", "history"]
    tau: float = 1.0
    seed: int = 0


def parse_oracle(text: str) -> OracleName:
    """From the setting's text, as :data:`ORACLES` lists them. Raises :class:`ConfigError`."""
    match text:
        case "true" | "none" | "history":
            return OracleName(text)
    kind, *values = text.split(":")
    if kind != "noisy" or len(values) > 2:
        raise ConfigError(unknown_name("oracle", text, ORACLES))
    try:
        tau = float(values[0]) if values else math.nan
        seed = int(values[1]) if len(values) == 2 else 0
    except ValueError:
        tau, seed = math.nan, 0
    if not 0 <= tau <= 1:
        raise ConfigError(f"oracle is {text}; must be noisy:TAU[:SEED] with TAU from 0 to 1 and SEED a whole number")
    return OracleName("noisy", tau, seed)


def build_oracle(config: SchedulerConfig) -> LengthOracle:
    """The oracle that ``config`` names, ``true`` by default. Raises :class:`ConfigError`."""
    kind, tau, seed = parse_oracle(config.oracle or "true")
    if kind == "noisy":
        if config.length_quantiles is None:
            raise ConfigError(
                f"oracle {config.oracle} needs length_quantiles: the distribution of output lengths, which the command "
                "line takes from the workload"
            )
        return NoisyLengths(config.length_quantiles, tau, seed)
    if kind == "history":
        return LearnedLengths()
    return TrueLengths() if kind == "true" else NoLengths()
