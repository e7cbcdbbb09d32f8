"""Plans made by hand, for an executor without a scheduler: each step says in so many words what is to be computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.draws import Draw
from engine.executors import Executor, PaddedExecutor, PagedExecutor, StepResult
from engine.kernels import kernels_for
from scheduler.plan import NEVER, Chunk, DigestEntry, Kind, Layout, StepFeatures, StepPlan, Swap
from scheduler.request import Request, SamplingParams
from scheduler.sequence import Sequence


def plan_by_hand(
    chunks: Iterable[Chunk],
    layout: Layout,
    tables: Mapping[int, list[int]] | None = None,
    *,
    index: int = 0,
    now_ns: int = 0,
    released: Iterable[int] = (),
    swapped_out: Iterable[Swap] = (),
    swapped_in: Iterable[Swap] = (),
) -> StepPlan:
    """A plan of one step; ``tables`` are the block ids of each sequence number. Features have what executors read."""
    chunks = sorted(chunks, key=lambda chunk: chunk.sequence.number)
    rows = len(chunks)
    decode_rows = sum(chunk.tokens == 1 and chunk.start > 0 for chunk in chunks)
    kind: Kind = "decode" if decode_rows == rows else "mixed" if decode_rows else "prefill"
    new_tokens = sum(chunk.tokens for chunk in chunks)
    ends = [chunk.start + chunk.tokens for chunk in chunks]
    features = StepFeatures(
        layout=layout, kind=kind, rows=rows, rows_computed=rows, new_tokens=new_tokens, new_tokens_computed=new_tokens,
        context_tokens=0, kv_columns_computed=0, kv_tokens_read=sum(ends), longest_context=max(ends),
        blocks_touched=0, sampled_rows=sum(chunk.samples for chunk in chunks), decode_rows=decode_rows,
    )  # fmt: skip
    return StepPlan(
        index=index,
        now_ns=now_ns,
        repeat=1,
        features=features,
        digest_entry=DigestEntry(kind, rows, 0, 0, 0, 1),
        until_ns=NEVER,
        arrival_matters=False,
        released=tuple(released),
        _chunks=lambda: chunks,
        _block_table=lambda sequence: (tables or {})[sequence.number],
        swapped_out=tuple(swapped_out),
        swapped_in=tuple(swapped_in),
    )


def executor_of(model: Any, memory: str, overlap: bool = False) -> Any:
    """Room for three sequences, in blocks of 4 tokens. ``memory``: padded, paged, private blocks, or paged with kernels
    that read the blocks where they are."""
    if memory == "padded":
        return PaddedExecutor(model, max_running=3, overlap=overlap)
    kv_pool: Any = "contiguous" if memory == "private blocks" else "paged"
    kernels: Any = kernels_for(model.device) if memory == "kernels" else None
    return PagedExecutor(
        model, kv_tokens=96, max_running=3, block_tokens=4, kv_pool=kv_pool, overlap=overlap, kernels=kernels
    )


class Known(NamedTuple):
    """What an executor reads of a sequence."""

    token_ids: list[int]
    seed: int = 0
    sampling: SamplingParams = SamplingParams()

    @property
    def plain(self) -> bool:
        return self.sampling.plain

    def draw(self, position: int) -> Draw:
        return Draw(self.sampling, self.seed, position)


@dataclass
class Desk:
    """Steps a few prompts through an executor. Sequences go by the place of their prompt; so do tables."""

    executor: Executor
    prompts: list[list[int]]
    block_tokens: int = 4
    tables: dict[int, list[int]] = field(default_factory=dict)
    plans: int = 0

    def __post_init__(self) -> None:
        self.states = {place: Known(list(prompt)) for place, prompt in enumerate(self.prompts)}
        self.sequences = [
            Sequence(Request(str(place), 0, len(prompt)), place, 0, 512) for place, prompt in enumerate(self.prompts)
        ]

    def outputs(self, place: int) -> list[int]:
        """The tokens that the prompt got."""
        return self.states[place].token_ids[len(self.prompts[place]) :]

    def computed(self, place: int) -> int:
        """Tokens whose KV is held by a sequence that has been stepped: all but the last."""
        return len(self.states[place].token_ids) - 1

    def decode(self, *places: int) -> list[Chunk]:
        """A row for each sequence."""
        return [Chunk(self.sequences[place], self.computed(place), 1, True) for place in places]

    def prefill(self, place: int, start: int = 0, end: int | None = None) -> list[Chunk]:
        """A chunk of the prompt; it samples if it is the last one."""
        known = len(self.states[place].token_ids)
        end = known if end is None else end
        return [Chunk(self.sequences[place], start, end - start, end == known)]

    def swap(self, place: int) -> Swap:
        """All that is held of a sequence, in the blocks that its table has now."""
        tokens = self.computed(place)
        count = -(-tokens // self.block_tokens)
        return Swap(place, tokens, tuple(self.tables.get(place, ())[:count]))

    def step(self, *chunks: list[Chunk], **more: Any) -> StepResult:
        """Run a step of all ``chunks``, and give every sequence its token."""
        together = [chunk for some in chunks for chunk in some]
        plan = plan_by_hand(together, self.executor.layout, self.tables, index=self.plans, **more)
        self.plans += 1
        result = self.executor.launch(plan, self.states).result()
        assert set(result.tokens) == {chunk.sequence.number for chunk in together if chunk.samples}
        for number, token in result.tokens.items():
            self.states[number].token_ids.append(token)
        return result
