"""Greedy tokens of every layout are transformers' own, however the scheduler cuts and interrupts the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tiny_models import LENGTHS, assert_greedy, output_tokens, prompts_of

from engine.executors import build_executor
from engine.loop import EngineLoop, TokenOutput
from engine.models import LoadedModel
from scheduler.config import SchedulerConfig
from scheduler.request import Request
from scheduler.scheduler import Scheduler


def serve(
    model: LoadedModel, prompts: list[list[int]], max_tokens: int | None = None, **settings: Any
) -> tuple[dict[str, list[int]], Scheduler]:
    """Tokens of every prompt, served together; ``max_tokens`` is what requests declare (default: what they need)."""
    config = SchedulerConfig.from_dict({"kv_tokens": 4096, "context_tokens": model.context_tokens, **settings})
    scheduler = Scheduler(config)
    tokens: dict[str, list[int]] = {str(place): [] for place in range(len(prompts))}

    def hear(output: TokenOutput) -> None:
        if output.token_id is not None:
            tokens[output.request_id].append(output.token_id)

    loop = EngineLoop(scheduler, build_executor(model, config), listener=hear)
    loop.run(
        Request(
            str(place),
            0,
            len(prompt),
            max_tokens or output_tokens(place),
            output_tokens(place),
            prompt_token_ids=tuple(prompt),
        )
        for place, prompt in enumerate(prompts)
    )
    assert scheduler.idle
    return tokens, scheduler


@pytest.mark.parametrize("family", ["qwen2", "llama", "glm4", "opt"])
@pytest.mark.parametrize(("layout", "kv_pool"), [("padded", "contiguous"), ("paged", "paged"), ("paged", "contiguous")])
def test_mixed_batch_equals_generate(reference: Callable[[str], Any], family: str, layout: str, kv_pool: str) -> None:
    prompts = prompts_of(512)
    tokens, _ = serve(reference(family).ours, prompts, policy="fcfs", layout=layout, kv_pool=kv_pool)
    assert_greedy(reference(family), tokens, prompts)


@pytest.mark.parametrize("policy", ["static", "sjf", "sjf-bucket", "sjf-aging", "srpt"])
@pytest.mark.parametrize("layout", ["padded", "paged"])
def test_every_policy_gives_the_same_tokens(reference: Callable[[str], Any], policy: str, layout: str) -> None:
    prompts = prompts_of(512)
    tokens, _ = serve(reference("qwen2").ours, prompts, policy=policy, layout=layout, max_running=5)
    assert_greedy(reference("qwen2"), tokens, prompts)


def test_dead_rows_of_a_closed_batch_change_no_token(reference: Callable[[str], Any]) -> None:
    prompts = prompts_of(512)
    tokens, scheduler = serve(reference("qwen2").ours, prompts, policy="static", layout="padded", max_running=4)
    assert scheduler.counters.decode_rows_computed > scheduler.counters.decode_rows
    assert_greedy(reference("qwen2"), tokens, prompts)


@pytest.mark.parametrize("layout", ["padded", "paged"])
def test_chunked_prefill_equals_generate(reference: Callable[[str], Any], layout: str) -> None:
    prompts = prompts_of(512)
    tokens, scheduler = serve(reference("qwen2").ours, prompts, policy="fcfs", layout=layout, max_prefill_tokens=7)
    assert scheduler.counters.steps_prefill > sum(LENGTHS) // 7
    assert_greedy(reference("qwen2"), tokens, prompts)


@pytest.mark.parametrize("layout", ["padded", "paged"])
@pytest.mark.parametrize("max_prefill_tokens", [9, 2048])
def test_preempted_sequences_go_on_as_if_nothing_had_happened(
    reference: Callable[[str], Any], layout: str, max_prefill_tokens: int
) -> None:
    prompts = prompts_of(512)
    tokens, scheduler = serve(
        reference("llama").ours, prompts, policy="fcfs", layout=layout, kv_pool="paged", kv_tokens=96, block_tokens=4,
        max_prefill_tokens=max_prefill_tokens,
    )  # fmt: skip
    assert scheduler.counters.preemptions > 0
    assert_greedy(reference("llama"), tokens, prompts)


def test_dense_slots_grow_with_a_long_sequence(reference: Callable[[str], Any]) -> None:
    prompts = prompts_of(512, (250, 300, 12))
    tokens, _ = serve(reference("qwen2").ours, prompts, policy="fcfs", layout="padded")
    assert_greedy(reference("qwen2"), tokens, prompts)


@pytest.mark.model
@pytest.mark.parametrize("layout", ["padded", "paged"])
@pytest.mark.parametrize("policy", ["fcfs", "static", "sjf", "sjf-bucket", "sjf-aging", "srpt"])
def test_embedded_model_equals_generate(embedded: Any, layout: str, policy: str) -> None:
    """Prompts in chunks, and a KV memory in which growing sequences push each other out."""
    texts = ("Hello, my name is", "The capital of France is", "人工智能的未来是", "The future of AI")
    prompts = [embedded.ours.tokenizer.encode(text) for text in texts]
    declared = {"max_tokens": 12} if policy == "static" else {}
    tokens, scheduler = serve(
        embedded.ours, prompts, policy=policy, layout=layout, kv_pool="paged", kv_tokens=32, block_tokens=2,
        max_prefill_tokens=4, **declared,
    )  # fmt: skip
    assert scheduler.counters.steps_prefill > len(prompts)
    assert policy == "static" or scheduler.counters.preemptions > 0, "static reserves what it may need"
    assert_greedy(embedded, tokens, prompts)


@pytest.mark.model
@pytest.mark.parametrize(
    ("counter", "settings"),
    [
        ("swapped_in", {"layout": "padded", "kv_tokens": 32, "block_tokens": 2, "preemption": "swap"}),
        ("swapped_in", {"kv_tokens": 32, "block_tokens": 2, "preemption": "swap", "overlap": True}),
        ("steps_mixed", {"phase": "mixed", "chunk_tokens": 6, "policy": "srpt"}),
        ("prefix_hit_tokens", {"policy": "lpm", "prefix_cache": True, "block_tokens": 1, "max_running": 1}),
        ("steps_decode", {"policy": "las", "batching": "slice:3", "overlap": True, "quantum": 2}),
    ],
)
def test_embedded_model_equals_generate_with_parts(embedded: Any, counter: str, settings: dict[str, Any]) -> None:
    """Spot checks on the true model of what the tiny ones are put through in all pairs."""
    texts = ("The capital of France is", "The capital of Italy is", "人工智能的未来是", "The future of AI")
    prompts = [embedded.ours.tokenizer.encode(text) for text in texts]
    tokens, scheduler = serve(
        embedded.ours, prompts, **{"policy": "fcfs", "layout": "paged", "kv_pool": "paged", **settings}
    )
    assert getattr(scheduler.counters, counter) > 0
    assert_greedy(embedded, tokens, prompts)
