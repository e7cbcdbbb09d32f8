"""What a step is: the plan that the scheduler hands out, its cost features, and the outcome that comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from scheduler.sequence import Sequence

Kind = Literal["prefill", "decode", "mixed"]
Layout = Literal["padded", "paged"]
StopReason = Literal["length", "eos", "stop", "error"]

#: end times of steps
Ends = npt.NDArray[np.int64] | list[int]

#: later than every time: "never"; the largest number that a compiled scheduler holds in a word
NEVER = (1 << 62) - 1

#: 0, 1, 2, ...: most stretches are shorter than this
_STEPS = np.arange(2048, dtype=np.int64)


class Chunk(NamedTuple):
    """``tokens`` tokens of ``sequence`` from position ``start`` on are computed by a step.

    ``samples``: the chunk reaches the last known token, so that the step samples the next one.
    """

    sequence: Sequence
    start: int
    tokens: int
    samples: bool


class Swap(NamedTuple):
    """KV of one sequence that is moved between the device and host memory before the step runs."""

    number: int
    """of the sequence"""
    tokens: int
    """computed tokens, whose KV is moved"""
    blocks: tuple[int, ...]
    """its block ids on the device, in token order; empty where the pool has none (contiguous)"""


class StepFeatures(NamedTuple):
    """What a step costs by: exact integers of the layout, recorded by both worlds and read by every cost model.

    Of a stretch (``repeat`` > 1) these are the *first* step's; :meth:`StepPlan.columns` gives every step's.
    Linear slots are rows of the matrix products, attention slots are KV columns read by queries. The formulas per
    layout are in ``docs/metrics.md``.
    """

    layout: Layout
    kind: Kind
    rows: int
    """sequences in the step"""
    rows_computed: int
    """rows that are computed; more than ``rows`` for the dead rows of a closed padded batch, and for those that fill
    up a graph"""
    new_tokens: int
    """useful linear slots"""
    new_tokens_computed: int
    """linear slots computed, padding included"""
    context_tokens: int
    """useful attention slots: sum over the chunks of (query, key) pairs under the causal mask"""
    kv_columns_computed: int
    """attention slots computed, padding included"""
    kv_tokens_read: int
    """tokens whose KV the step reads: sum over the chunks of their end position"""
    longest_context: int
    """largest end position in the step"""
    blocks_touched: int
    """KV blocks (or reservations, in a contiguous pool) that belong to the step's sequences"""
    sampled_rows: int
    """rows that sample a token"""
    decode_rows: int = 0
    """rows that decode, in a mixed step; in a decode step all of them"""
    decode_context_tokens: int = 0
    """their part of ``context_tokens``"""
    swapped_tokens: int = 0
    """tokens whose KV is moved to or from host memory before the (first) step"""
    graph_rows: int = 0
    """rows of the graph that the step runs as; 0 where it runs as none"""
    longest_decode_context: int = 0
    """largest end position among the rows that decode"""
    released: int = 0
    """sequences that gave their memory back since the step before: what the host and the device have to clear up"""
    shared_kv_tokens: int = 0
    """tokens that a prefix cache holds for several sequences, counted for each of them after the first: of all that
    hold memory, most of which are rows of a decode step, so that it reads that many from a place it has read"""


class StepColumns(NamedTuple):
    """The features of ``repeat`` consecutive steps: each field a scalar (the same in all) or ``int64[repeat]``."""

    layout: Layout
    kind: Kind
    repeat: int
    rows: int
    rows_computed: int
    new_tokens: int
    new_tokens_computed: int
    context_tokens: int | npt.NDArray[np.int64]
    kv_columns_computed: int | npt.NDArray[np.int64]
    kv_tokens_read: int | npt.NDArray[np.int64]
    longest_context: int | npt.NDArray[np.int64]
    sampled_rows: int
    decode_rows: int = 0
    swapped_tokens: int = 0
    decode_context_tokens: int | npt.NDArray[np.int64] = 0
    graph_rows: int = 0
    longest_decode_context: int | npt.NDArray[np.int64] = 0
    released: int | npt.NDArray[np.int64] = 0
    shared_kv_tokens: int = 0


class StepPlan:
    """One step, or a stretch of ``repeat`` steps in which the same sequences each go one token further.

    ``until_ns``: the first time at which a decision may change by time alone; ``arrival_matters``: whether a new
    request may change the next decision, or what is counted until then. A world that runs a stretch ends it with the
    first step that ends at or after ``until_ns`` (or at or after such an arrival). ``released``: numbers of the
    sequences whose memory was given back since the plan before (finished, evicted or aborted): an executor drops what
    it holds for them. ``swapped_out`` and then ``swapped_in`` say whose KV moves before anything is computed.
    """

    __slots__ = (
        "_block_table",
        "_chunks",
        "_list",
        "arrival_matters",
        "digest_entry",
        "features",
        "index",
        "now_ns",
        "released",
        "repeat",
        "swapped_in",
        "swapped_out",
        "until_ns",
    )

    def __init__(
        self,
        index: int,
        now_ns: int,
        repeat: int,
        features: StepFeatures,
        digest_entry: DigestEntry,
        until_ns: int,
        arrival_matters: bool,
        released: tuple[int, ...],
        _chunks: Callable[[], list[Chunk]],
        _block_table: Callable[[Sequence], list[int]],
        swapped_out: tuple[Swap, ...] = (),
        swapped_in: tuple[Swap, ...] = (),
    ) -> None:
        self.index = index
        self.now_ns = now_ns
        self.repeat = repeat
        self.features = features
        self.digest_entry = digest_entry
        self.until_ns = until_ns
        self.arrival_matters = arrival_matters
        self.released = released
        self.swapped_out = swapped_out
        self.swapped_in = swapped_in
        self._chunks = _chunks
        self._block_table = _block_table
        self._list: list[Chunk] | None = None

    @property
    def kind(self) -> Kind:
        return self.features.kind

    @property
    def chunks(self) -> list[Chunk]:
        """The chunks of the first step, in row order: by sequence number. Only before :meth:`Scheduler.complete`."""
        if self._list is None:
            self._list = self._chunks()
        return self._list

    def block_table(self, sequence: Sequence) -> list[int]:
        """Ids of the KV blocks of ``sequence``, in token order, enough for this step. Paged pools only."""
        return self._block_table(sequence)

    def part(self, chunks: list[Chunk]) -> StepPlan:
        """The same step for ``chunks`` alone, which are some of its own or were cut from them; no dead rows.

        Of its features only what an executor reads is that part's.
        """
        longest = max(chunk.start + chunk.tokens for chunk in chunks)
        features = self.features._replace(rows=len(chunks), rows_computed=len(chunks), longest_context=longest)
        return self._listed(features, chunks, self._block_table)

    def fixed(self, tables: Mapping[int, list[int]] | None = None) -> StepPlan:
        """The plan with its chunks listed, and the block ``tables`` by sequence number, whatever becomes of them."""
        chunks = self.chunks
        if tables is None:
            return self._listed(self.features, chunks, self._block_table)
        return self._listed(self.features, chunks, lambda sequence: tables[sequence.number])

    def _listed(
        self, features: StepFeatures, chunks: list[Chunk], block_table: Callable[[Sequence], list[int]]
    ) -> StepPlan:
        plan = StepPlan(
            self.index, self.now_ns, self.repeat, features, self.digest_entry, self.until_ns, self.arrival_matters,
            self.released, self._chunks, block_table, self.swapped_out, self.swapped_in,
        )  # fmt: skip
        plan._list = chunks
        return plan

    def digest(self) -> tuple[int | str, ...]:
        """What identifies the plan; see :class:`~scheduler.digest.PlanDigest`."""
        return tuple(self.digest_entry)

    @property
    def columns_grown(self) -> int:
        """KV columns that each step of a stretch computes more than the one before."""
        f = self.features
        return f.rows_computed if f.layout == "padded" else f.rows

    def columns(self, start: int = 0, stop: int | None = None) -> StepColumns:
        """The features of steps ``start`` to ``stop`` (default: all) of the stretch, for a cost model."""
        f = self.features
        stop = self.repeat if stop is None else stop
        if self.repeat == 1:
            return StepColumns(f.layout, f.kind, 1, f.rows, f.rows_computed, f.new_tokens, f.new_tokens_computed,
                               f.context_tokens, f.kv_columns_computed, f.kv_tokens_read, f.longest_context,
                               f.sampled_rows, f.decode_rows, f.swapped_tokens, f.decode_context_tokens,
                               f.graph_rows, f.longest_decode_context, f.released, f.shared_kv_tokens)  # fmt: skip
        step = _STEPS[start:stop] if stop <= len(_STEPS) else np.arange(start, stop, dtype=np.int64)
        grown = step if f.rows == 1 else f.rows * step
        tokens = grown + f.kv_tokens_read
        if f.layout == "padded":
            columns = f.kv_columns_computed + f.rows_computed * step
        elif f.kv_columns_computed == f.kv_tokens_read:
            columns = tokens
        else:
            # the rows that fill up a graph stay as they are
            columns = f.kv_columns_computed + grown
        longest = f.longest_context + step
        # whoever left did so before the first step
        released = f.released * (step == 0) if f.released and start == 0 else 0
        return StepColumns(f.layout, f.kind, stop - start, f.rows, f.rows_computed, f.new_tokens,
                           f.new_tokens_computed, tokens, columns, tokens, longest,
                           f.sampled_rows, f.decode_rows, 0, tokens, f.graph_rows, longest, released,
                           f.shared_kv_tokens)  # fmt: skip


class DigestEntry(NamedTuple):
    """A plan in five integers: sums over its rows, modulo 2**64, of hashes of the request ids."""

    kind: Kind
    rows: int
    ids: int
    """sum of h(id)"""
    starts: int
    """sum of h(id) x start position"""
    tokens: int
    """sum of h(id) x token count; equals ``ids`` in a decode step"""
    repeat: int


class StepOutcome:
    """What a world says of a plan it has run.

    ``ends_ns``: end time of each step that was run, at most ``plan.repeat`` of them, increasing. ``device_ns`` and
    ``host_ns`` are totals over those steps. ``stops``: sequence numbers that ended by an end token, a stop string
    or an error in the (last) step, which the plan could not foresee. ``launch_ns``: of the device's time, how long the
    host was about handing the work over. ``work_ns``: of a step that was launched while another ran, all that the host
    did from one wait for the device to the next, hidden or not; 0 where that was not measured.
    """

    __slots__ = ("device_ns", "ends_ns", "host_ns", "launch_ns", "stops", "work_ns")

    def __init__(
        self,
        ends_ns: Ends,
        device_ns: int,
        host_ns: int,
        stops: Mapping[int, StopReason] | None = None,
        launch_ns: int = 0,
        work_ns: int = 0,
    ) -> None:
        self.ends_ns = ends_ns
        self.device_ns = device_ns
        self.host_ns = host_ns
        self.stops: Mapping[int, StopReason] = {} if stops is None else stops
        self.launch_ns = launch_ns
        self.work_ns = work_ns


def iter_sampled(plan: StepPlan) -> Iterator[Sequence]:
    """The sequences that sample a token in ``plan``, in row order."""
    return (chunk.sequence for chunk in plan.chunks if chunk.samples)
