"""A small load for an executor: prompts of several lengths that thin out, and what transformers says of them."""

from __future__ import annotations

import random
from typing import Any

import torch
from divided_models import VOCAB

from engine.executors import FusedExecutor
from engine.loop import EngineLoop, TokenOutput
from engine.models import LoadedModel
from engine.tokenizer import Tokenizer
from scheduler.config import SchedulerConfig
from scheduler.graphs import graph_sizes
from scheduler.request import Request, SamplingParams
from scheduler.scheduler import Scheduler

LENGTHS = (3, 17, 17, 5, 33, 40, 20)
#: below this distance between the best two logits, two correct float32 computations may choose differently
TIE = 1e-3
#: memory in which the requests push each other out
TIGHT = {"kv_tokens": 96, "block_tokens": 4, "max_prefill_tokens": 16}


def prompts() -> list[list[int]]:
    source = random.Random(3)
    found = [[source.randrange(10, VOCAB) for _ in range(length)] for length in LENGTHS]
    found[2][:8] = found[1][:8]  # for the prefix cache
    return found


def output_tokens(place: int) -> int:
    return 6 + place * 5 % 9


def serve(
    model: LoadedModel,
    sampling: SamplingParams | None = None,
    abort: str | None = None,
    on_token: Any = None,
    tokenizer: Tokenizer | None = None,
    **settings: Any,
) -> tuple[list[list[int]], Scheduler, dict[str, str]]:
    """Tokens by prompt, the scheduler, and how each request ended."""
    config = SchedulerConfig.from_dict(
        {"kv_pool": "paged", "kv_tokens": 1024, "context_tokens": model.context_tokens, "max_running": 6,
         "graph_rows": graph_sizes(6), **settings}
    )  # fmt: skip
    executor = FusedExecutor(
        model, kv_tokens=config.capacity_tokens, max_running=config.max_running, max_rows=config.rows,
        block_tokens=config.block_tokens, kv_pool=config.pool, graphs=config.graphs,
    )  # fmt: skip
    scheduler = Scheduler(config)
    tokens: list[list[int]] = [[] for _ in LENGTHS]
    ends: dict[str, str] = {}

    def hear(output: TokenOutput) -> None:
        if output.finish_reason:
            ends[output.request_id] = output.finish_reason
        if output.token_id is not None:
            found = tokens[int(output.request_id)]
            found.append(output.token_id)
            if output.request_id == abort and len(found) == 3:
                loop.abort(abort)
            if on_token is not None:
                on_token(output)

    loop = EngineLoop(scheduler, executor, tokenizer=tokenizer, listener=hear)
    try:
        loop.run(
            Request(
                str(place), 0, len(prompt), output_tokens(place), output_tokens(place), prompt_token_ids=tuple(prompt),
                sampling=sampling or SamplingParams(),
            )
            for place, prompt in enumerate(prompts())
        )  # fmt: skip
    except Exception as error:
        error.ends = ends  # type: ignore[attr-defined]
        raise
    assert scheduler.idle
    return tokens, scheduler, ends


def greedy(model: LoadedModel) -> list[list[int]]:
    """Tokens of transformers' ``generate`` for every prompt, each up to the first near-tie."""
    causal: Any = model.model
    found = []
    for place, prompt in enumerate(prompts()):
        ids = torch.tensor([prompt], device=model.device)
        made = causal.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=output_tokens(place), do_sample=False,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        found.append([])
        for token, logits in zip(made.sequences[0, len(prompt) :].tolist(), made.logits, strict=True):
            best, second = logits[0].float().topk(2).values.tolist()
            if best - second < TIE:
                break
            found[-1].append(token)
    assert sum(map(len, found)) > sum(map(output_tokens, range(len(found)))) // 2, "too many near-ties to say much"
    return found


def assert_greedy(tokens: list[list[int]], expected: list[list[int]], without: tuple[int, ...] = ()) -> None:
    for place, (ours, theirs) in enumerate(zip(tokens, expected, strict=True)):
        if place not in without:
            assert ours[: len(theirs)] == theirs
            assert len(ours) == output_tokens(place)
