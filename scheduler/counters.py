"""What a run comes to in integers: exact, equal in both worlds, and what the padding-waste gate compares."""

from __future__ import annotations

from dataclasses import dataclass, fields

from scheduler.plan import StepFeatures


@dataclass(slots=True)
class RunCounters:
    """Integer sums over the steps of a run. ``docs/metrics.md`` has the formulas.

    Linear slots are rows of the matrix products, attention slots KV columns. The ``kv_*_sum`` add up token slots over
    the steps: held by a token, reserved, free, and free but of no use to the request that is next; the
    ``kv_*_token_ns`` weigh them by each step's time. The decode rows of a mixed step count as decode, its chunks as
    prefill. ``wasted_rows`` were computed for sequences that had ended; they are counted as useful elsewhere.
    ``graph_rows`` were computed by steps that ran as graphs of fixed sizes, for ``graph_rows_used`` tokens.
    """

    submitted: int = 0
    finished: int = 0
    rejected: int = 0
    aborted: int = 0
    steps_prefill: int = 0
    steps_decode: int = 0
    steps_mixed: int = 0
    linear_useful_prefill: int = 0
    linear_computed_prefill: int = 0
    linear_useful_decode: int = 0
    linear_computed_decode: int = 0
    attention_useful_prefill: int = 0
    attention_computed_prefill: int = 0
    attention_useful_decode: int = 0
    attention_computed_decode: int = 0
    decode_rows: int = 0
    decode_rows_computed: int = 0
    graph_rows: int = 0
    graph_rows_used: int = 0
    wasted_rows: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    swapped_out: int = 0
    swapped_in: int = 0
    swapped_tokens: int = 0
    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    kv_peak_tokens: int = 0
    kv_held_sum: int = 0
    kv_reserved_sum: int = 0
    kv_free_sum: int = 0
    kv_unusable_sum: int = 0
    kv_held_token_ns: int = 0
    kv_reserved_token_ns: int = 0
    kv_free_token_ns: int = 0
    kv_unusable_token_ns: int = 0
    kv_allocations: int = 0
    kv_reused: int = 0
    kv_reused_after_preemption: int = 0
    longest_wait_ns: int = 0
    longest_gap_ns: int = 0
    over_threshold: int = 0

    def add(self, other: RunCounters) -> None:
        """Count another run in: sums, and the larger of what is a peak or the longest."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            largest = field.name.startswith("longest_") or field.name == "kv_peak_tokens"
            setattr(self, field.name, max(mine, theirs) if largest else mine + theirs)

    def add_steps(self, features: StepFeatures, steps: int) -> None:
        """Count ``steps`` steps of a stretch whose first one has these features."""
        growth = steps * (steps - 1) // 2
        if features.graph_rows:
            self.graph_rows += steps * features.graph_rows
            self.graph_rows_used += steps * features.new_tokens
        if features.kind == "decode":
            context = steps * features.context_tokens + features.rows * growth
            rows_computed = features.rows_computed if features.layout == "padded" else features.rows
            self.steps_decode += steps
            self.linear_useful_decode += steps * features.new_tokens
            self.linear_computed_decode += steps * features.new_tokens_computed
            self.attention_useful_decode += context
            self.attention_computed_decode += steps * features.kv_columns_computed + rows_computed * growth
            self.decode_rows += steps * features.rows
            self.decode_rows_computed += steps * features.rows_computed
            return
        rows, context = features.decode_rows, features.decode_context_tokens
        if features.kind == "mixed":
            self.steps_mixed += 1
            self.linear_useful_decode += rows
            self.linear_computed_decode += rows
            self.attention_useful_decode += context
            self.attention_computed_decode += context
            self.decode_rows += rows
            self.decode_rows_computed += rows
        else:
            self.steps_prefill += 1
        self.linear_useful_prefill += features.new_tokens - rows
        self.linear_computed_prefill += features.new_tokens_computed - rows
        self.attention_useful_prefill += features.context_tokens - context
        self.attention_computed_prefill += features.kv_columns_computed - context
