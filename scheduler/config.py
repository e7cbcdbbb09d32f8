"""Every setting of a scheduler, as one frozen value that goes into manifests and replay headers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, get_args

from scheduler.buckets import parse_buckets
from scheduler.errors import ConfigError as ConfigError
from scheduler.errors import unknown_name as unknown_name
from scheduler.graphs import Graphs
from scheduler.kv import PoolKind
from scheduler.oracle import parse_oracle
from scheduler.parts import PARTS, parse_admission, parse_batching
from scheduler.plan import Layout


@dataclass(frozen=True)
class SchedulerConfig:
    """Settings of one scheduler. Those that are ``None`` are the policy's own defaults.

    ``max_running`` sequences hold KV, ``max_rows`` rows are in a step (default: all that are resident),
    ``max_prefill_tokens`` prompt tokens are computed by a step at most: a longer prompt goes in chunks.
    ``policy`` is a name or a file of the user's own, see :mod:`scheduler.user_policies`.
    ``kv_tokens`` is the KV memory, ``context_tokens`` the longest sequence that the model takes. ``kv_pool`` defaults
    to the layout's: paged for ``paged``, contiguous for ``padded``. ``starvation_s`` is only reported on.
    ``graph_rows``: the sizes, increasing, of the graphs that decode steps run as on ``paged``
    (:mod:`scheduler.graphs`); none where steps run as they are. ``graph_tokens``, ``graph_mixed``: likewise of steps
    of prompts, alone and beside rows.
    """

    policy: str = "fcfs"
    layout: Layout = "paged"
    max_running: int = 16
    max_rows: int | None = None
    max_prefill_tokens: int = 2048
    kv_pool: PoolKind | None = None
    kv_tokens: int = 1 << 40
    block_tokens: int = 16
    context_tokens: int = 1 << 30
    starvation_s: float = 60.0
    graph_rows: tuple[int, ...] = ()
    graph_tokens: tuple[int, ...] = ()
    graph_mixed: tuple[int, ...] = ()
    # parts that go with any policy
    batching: str | None = None
    phase: str | None = None
    chunk_tokens: int | None = None
    admission: str | None = None
    aging: str | None = None
    aging_s: float | None = None
    aging_weight: float | None = None
    victim: str | None = None
    preemption: str | None = None
    swap_tokens: int | None = None
    prefix_cache: bool = False
    overlap: bool = False
    oracle: str | None = None
    # what some policies take
    bucket: int | str | None = None
    bucket_order: str | None = None
    bins: int | None = None
    min_rows: int | None = None
    quantum: int | None = None
    min_batch: int | None = None
    max_wait_s: float | None = None
    #: of the file that ``policy`` names; the scheduler fills it in, and refuses a file that differs
    policy_sha256: str | None = None
    # constants of the run
    prefill_token_ns: int = 50_000
    length_quantiles: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("max_running", "max_rows", "max_prefill_tokens", "kv_tokens", "block_tokens", "context_tokens",
                     "chunk_tokens", "bins", "min_batch"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; must be >= 1")
        for name in ("starvation_s", "aging_s", "aging_weight", "swap_tokens", "quantum", "min_rows", "max_wait_s",
                     "prefill_token_ns"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} is {value}; must be >= 0")
        self._check_names()
        if self.length_quantiles is not None:
            quantiles = self.length_quantiles
            if not quantiles or quantiles[0] < 1 or any(a > b for a, b in pairwise(quantiles)):
                raise ConfigError("length_quantiles must be lengths >= 1 that never fall, at least one")
        for name, what in (("graph_rows", "rows"), ("graph_tokens", "tokens"), ("graph_mixed", "tokens")):
            sizes = getattr(self, name)
            if sizes and (sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes))):
                raise ConfigError(f"{name} must be numbers of {what} >= 1, each larger than the one before")
            if sizes and self.layout != "paged":
                raise ConfigError(f"{name} are for the paged layout: steps on {self.layout} do not run as graphs")
        if self.kv_tokens < self.block_tokens and self.pool == "paged":
            raise ConfigError(f"kv_tokens is {self.kv_tokens}, less than one block of {self.block_tokens} tokens")

    def _check_names(self) -> None:
        """Each by itself: what goes together is the composition's to say."""
        layouts, pools = get_args(Layout), get_args(PoolKind)
        if self.layout not in layouts:
            raise ConfigError(unknown_name("layout", self.layout, layouts))
        if self.kv_pool is not None and self.kv_pool not in pools:
            raise ConfigError(unknown_name("KV pool", str(self.kv_pool), pools))
        for part in ("phase", "aging", "victim", "preemption"):
            name = getattr(self, part)
            if name is not None and name not in PARTS[part]:
                raise ConfigError(unknown_name(part, str(name), PARTS[part]))
        if self.batching is not None:
            parse_batching(self.batching)
        if self.admission is not None:
            parse_admission(self.admission)
        if self.oracle is not None:
            parse_oracle(self.oracle)
        if self.bucket is not None:
            parse_buckets(self.bucket)

    @property
    def graphs(self) -> Graphs:
        """The graphs that steps run as."""
        return Graphs(self.graph_rows, self.graph_tokens, self.graph_mixed)

    @property
    def pool(self) -> PoolKind:
        """The kind of KV pool in force."""
        return self.kv_pool or ("paged" if self.layout == "paged" else "contiguous")

    @property
    def capacity_tokens(self) -> int:
        """KV tokens in whole blocks."""
        return self.kv_tokens // self.block_tokens * self.block_tokens if self.pool == "paged" else self.kv_tokens

    @property
    def rows(self) -> int:
        """The most rows of a step."""
        return self.max_running if self.max_rows is None else self.max_rows

    def as_dict(self) -> dict[str, Any]:
        """All settings, for a manifest or a replay header."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SchedulerConfig:
        """The inverse of :meth:`as_dict`; an unknown key is a :class:`ConfigError`."""
        valid = [field.name for field in fields(cls)]
        for key in values:
            if key not in valid:
                raise ConfigError(unknown_name("scheduler setting", key, valid))
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}  # as JSON has tuples
        return cls(**{**values, **lists})
