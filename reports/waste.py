"""Sums over ``steps.csv``: the scheduler's counters rebuilt from rows, and padding waste in time.

A row stands for ``repeat`` steps whose sequences each go one token further from step to step, so that a sum over the
row is its first step's feature x repeat plus a triangular number; both are exact integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.rows import digest_entry
from scheduler.counters import RunCounters
from scheduler.digest import PlanDigest
from scheduler.plan import Kind, Layout, StepColumns
from simulator.costs import CostModel

IntArray = npt.NDArray[np.int64]


def column(table: pd.DataFrame, name: str) -> IntArray:
    """An integer column as ``int64[rows]``."""
    return table[name].to_numpy(np.int64)


@dataclass(frozen=True)
class PartSums:
    """Sums over all steps of each row, of one part of them: the prompts, or the decode rows. ``int64[rows]``."""

    linear_useful: IntArray
    linear_computed: IntArray
    attention_useful: IntArray
    attention_computed: IntArray


@dataclass(frozen=True)
class StepSums:
    """Sums over all steps of each row. A mixed step has prompts and decode rows, the others only one of them."""

    kind: npt.NDArray[np.str_]
    repeat: IntArray
    decode_rows: IntArray
    decode_rows_computed: IntArray
    prefill: PartSums
    decode: PartSums

    @property
    def decodes(self) -> npt.NDArray[np.bool_]:
        """Whether decode rows are among its rows."""
        there: npt.NDArray[np.bool_] = self.kind != "prefill"
        return there


def step_sums(steps: pd.DataFrame) -> StepSums:
    """The sums of every row of ``steps.csv``."""
    kind = steps["kind"].to_numpy(np.str_)
    repeat, rows, rows_computed = (column(steps, name) for name in ("repeat", "rows", "rows_computed"))
    growth = repeat * (repeat - 1) // 2
    padded = (steps["layout"] == "padded").to_numpy(np.bool_)
    whole = PartSums(
        linear_useful=repeat * column(steps, "new_tokens"),
        linear_computed=repeat * column(steps, "new_tokens_computed"),
        attention_useful=repeat * column(steps, "context_tokens") + rows * growth,
        attention_computed=repeat * column(steps, "kv_columns_computed")
        + np.where(padded, rows_computed, rows) * growth,
    )
    # the decode rows of a mixed step are on paged memory, which computes nothing for nothing
    beside, context = column(steps, "decode_rows"), column(steps, "decode_context_tokens")
    of_mixed = PartSums(beside, beside, context, context)
    decode = PartSums(*(_of_decode(kind, *pair) for pair in zip(_parts(whole), _parts(of_mixed), strict=True)))
    return StepSums(
        kind=kind,
        repeat=repeat,
        decode_rows=_of_decode(kind, repeat * rows, beside),
        decode_rows_computed=_of_decode(kind, repeat * rows_computed, beside),
        prefill=PartSums(*(a - b for a, b in zip(_parts(whole), _parts(decode), strict=True))),
        decode=decode,
    )


def _parts(sums: PartSums) -> tuple[IntArray, ...]:
    return sums.linear_useful, sums.linear_computed, sums.attention_useful, sums.attention_computed


def _of_decode(kind: npt.NDArray[np.str_], whole: IntArray, of_mixed: IntArray) -> IntArray:
    """What of a row is its decode rows': all of a decode step, none of a prefill."""
    chosen: IntArray = np.select([kind == "decode", kind == "mixed"], [whole, of_mixed], 0)
    return chosen


def counters_from_rows(requests: pd.DataFrame, steps: pd.DataFrame) -> RunCounters:
    """What the rows of a killed run tell of the scheduler's counters. The ``kv_*`` ones, what the prefix cache was
    asked for, the longest waits and gaps and the wasted rows are in no row and stay 0: whoever shows them must say "not
    available". Requests that had not ended are in no row.
    """
    sums = step_sums(steps)
    counters = RunCounters()
    for kind in ("prefill", "decode", "mixed"):
        setattr(counters, f"steps_{kind}", int(sums.repeat[sums.kind == kind].sum()))
    for part, amounts in (("prefill", sums.prefill), ("decode", sums.decode)):
        for unit in ("linear_useful", "linear_computed", "attention_useful", "attention_computed"):
            setattr(counters, f"{unit}_{part}", int(getattr(amounts, unit).sum()))
    counters.decode_rows = int(sums.decode_rows.sum())
    counters.decode_rows_computed = int(sums.decode_rows_computed.sum())
    sizes = column(steps, "graph_rows")
    counters.graph_rows = int((sums.repeat * sizes).sum())
    counters.graph_rows_used = int((sums.repeat * column(steps, "new_tokens"))[sizes > 0].sum())
    counters.swapped_tokens = int(column(steps, "swapped_tokens").sum())
    outcomes = requests["outcome"]
    for outcome in ("finished", "rejected", "aborted"):
        setattr(counters, outcome, int((outcomes == outcome).sum()))
    counters.submitted = len(requests)
    counters.preemptions = int(column(requests, "preemptions").sum())
    counters.recomputed_tokens = int(column(requests, "recomputed_tokens").sum())
    counters.swapped_out = int(column(requests, "swapped_out").sum())
    counters.swapped_in = int(column(requests, "swapped_in").sum())
    counters.prefix_hit_tokens = int(column(requests, "prefix_hit_tokens").sum())
    return counters


def digest_from_rows(steps: pd.DataFrame) -> str:
    """The plan digest of the rows, as the scheduler would have given it after the last of them.

    Raises ``ValueError`` for a cell that is no digest.
    """
    digest = PlanDigest()
    for text in steps["digest"]:
        digest.add(digest_entry(text))
    return digest.hexdigest()


def time_waste(steps: pd.DataFrame, costs: CostModel) -> float | None:
    """1 - cost(useful) / cost(computed): the share of device time that padding takes, by a cost model.

    The useful step has the same sequences and no padded slot. A row costs its repeat times the mean of its first and
    last step, which is exact where the model is linear in the features. ``None`` without steps.
    """
    columns = {name: column(steps, name) for name in _COST_COLUMNS}
    columns["padded"] = (steps["layout"] == "padded").to_numpy().astype(np.int64)
    kinds = steps["kind"]
    columns["kind"] = np.select([(kinds == kind).to_numpy(np.bool_) for kind in _KINDS], range(len(_KINDS))).astype(
        np.int64
    )
    useful = computed = 0
    for rows in _alike(columns):
        group = {name: values[rows] for name, values in columns.items()}
        repeat = group["repeat"]
        for offset in (np.zeros_like(repeat), repeat - 1):
            computed += int(np.sum(repeat * costs.device_ns(_columns(group, offset, padding=True))))
            useful += int(np.sum(repeat * costs.device_ns(_columns(group, offset, padding=False))))
    return 1 - useful / computed if computed else None


#: what is the same in all steps of a stretch, and what grows with each
_FIXED = ("padded", "kind", "rows", "rows_computed", "new_tokens", "new_tokens_computed", "sampled_rows", "decode_rows",
          "swapped_tokens", "graph_rows")  # fmt: skip
_GROWING = ("context_tokens", "kv_columns_computed", "kv_tokens_read", "longest_context", "decode_context_tokens",
            "longest_decode_context")  # fmt: skip
_KINDS: tuple[Kind, ...] = ("prefill", "decode", "mixed")
_COST_COLUMNS = ("repeat", *_FIXED[2:], *_GROWING)


def _alike(columns: dict[str, IntArray]) -> list[npt.NDArray[np.intp]]:
    """Indices of the rows that differ only in what grows, so that a cost model can take a group at once."""
    keys = [columns[name] for name in _FIXED]
    order = np.lexsort(keys)
    changed = np.zeros(max(0, len(order) - 1), np.bool_)
    for key in keys:
        ordered = key[order]
        changed |= ordered[1:] != ordered[:-1]
    changes = np.flatnonzero(changed) + 1
    return [rows for rows in np.split(order, changes) if len(rows)]


def _columns(group: dict[str, IntArray], offset: IntArray, *, padding: bool) -> StepColumns:
    """The steps ``offset`` after the first of each row; without padding: useful slots only."""
    layout: Layout = "padded" if group["padded"][0] else "paged"
    kind = _KINDS[int(group["kind"][0])]
    rows, rows_computed = int(group["rows"][0]), int(group["rows_computed"][0])
    context = group["context_tokens"] + rows * offset
    read = group["kv_tokens_read"] + rows * offset
    growth = (rows_computed if layout == "padded" else rows) * offset
    longest, longest_decode = group["longest_context"] + offset, group["longest_decode_context"] + offset
    if layout == "padded" and not padding:
        # nothing is filled up to the longest
        longest = -(-read // rows)
        longest_decode = np.minimum(longest, longest_decode)
    return StepColumns(
        layout=layout,
        kind=kind,
        repeat=len(offset),
        rows=rows,
        rows_computed=rows_computed if padding else rows,
        new_tokens=int(group["new_tokens"][0]),
        new_tokens_computed=int(group["new_tokens_computed" if padding else "new_tokens"][0]),
        context_tokens=context,
        kv_columns_computed=group["kv_columns_computed"] + growth if padding else context,
        kv_tokens_read=read,
        longest_context=longest,
        sampled_rows=int(group["sampled_rows"][0]),
        decode_rows=int(group["decode_rows"][0]),
        swapped_tokens=int(group["swapped_tokens"][0]),
        decode_context_tokens=group["decode_context_tokens"] + rows * offset,
        graph_rows=int(group["graph_rows"][0]) if padding else 0,
        longest_decode_context=longest_decode,
    )
