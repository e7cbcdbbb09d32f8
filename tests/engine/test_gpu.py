"""The executors on a GPU: the same tokens as transformers' own ``generate`` there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hand_plans import Desk, executor_of

from engine.executors import build_executor, default_graphs
from engine.loop import EngineLoop, TokenOutput
from engine.models import loaded
from scheduler.config import SchedulerConfig
from scheduler.request import Request, SamplingParams
from scheduler.scheduler import Scheduler

pytestmark = pytest.mark.gpu

LENGTHS = (3, 17, 17, 5, 33, 48)


def serve(model: Any, sampling: SamplingParams, **settings: Any) -> tuple[list[list[int]], Scheduler]:
    """Twelve tokens for prompts of :data:`LENGTHS`, in a KV memory in which they push each other out."""
    config = SchedulerConfig.from_dict(
        {"kv_pool": "paged", "kv_tokens": 96, "block_tokens": 4, "max_prefill_tokens": 16, **settings}
    )
    config = replace(config, graph_rows=default_graphs(model, config).graph_rows)
    scheduler = Scheduler(config)
    tokens: list[list[int]] = [[] for _ in LENGTHS]

    def hear(output: TokenOutput) -> None:
        if output.token_id is not None:
            tokens[int(output.request_id)].append(output.token_id)

    loop = EngineLoop(scheduler, build_executor(model, config), listener=hear)
    loop.run(
        Request(str(place), 0, length, 12, 12, prompt_token_ids=tuple(range(20, 20 + length)), sampling=sampling)
        for place, length in enumerate(LENGTHS)
    )
    return tokens, scheduler


def assert_greedy(both: Any, tokens: list[list[int]]) -> None:
    """The tokens are those of transformers' ``generate`` on the GPU, up to the first near-tie."""
    theirs = copy.deepcopy(both.theirs.model).cuda()
    for length, given in zip(LENGTHS, tokens, strict=True):
        prompt = torch.arange(20, 20 + length, device="cuda")[None]
        made = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        for place, logits in enumerate(made.logits):
            best, second = logits[0].float().topk(2).values.tolist()
            if best - second < 1e-3:
                break
            assert given[place] == made.sequences[0, length + place].item()


@pytest.mark.parametrize("family", ["qwen2", "llama", "glm4"])
@pytest.mark.parametrize("layout", ["padded", "paged"])
@pytest.mark.parametrize("policy", ["fcfs", "sjf-bucket"])
def test_greedy_tokens_equal_generate(reference: Callable[[str], Any], family: str, layout: str, policy: str) -> None:
    both = reference(family)
    ours = loaded("ours", copy.deepcopy(both.ours.model).cuda())
    tokens, scheduler = serve(ours, SamplingParams(), policy=policy, layout=layout)
    assert scheduler.counters.preemptions > 0
    assert_greedy(both, tokens)


@pytest.mark.parametrize("layout", ["padded", "paged"])
@pytest.mark.parametrize("overlap", [False, True])
def test_kv_that_was_in_host_memory_gives_the_same_tokens(
    reference: Callable[[str], Any], layout: str, overlap: bool
) -> None:
    both = reference("qwen2")
    ours = loaded("ours", copy.deepcopy(both.ours.model).cuda())
    tokens, scheduler = serve(ours, SamplingParams(), layout=layout, preemption="swap", overlap=overlap)
    assert scheduler.counters.swapped_in > 0
    assert_greedy(both, tokens)


@pytest.mark.parametrize("overlap", [False, True])
def test_mixed_steps_and_shared_prefixes_give_the_same_tokens(reference: Callable[[str], Any], overlap: bool) -> None:
    both = reference("qwen2")
    ours = loaded("ours", copy.deepcopy(both.ours.model).cuda())
    tokens, scheduler = serve(
        ours, SamplingParams(), layout="paged", phase="mixed", chunk_tokens=9, prefix_cache=True, overlap=overlap
    )
    assert scheduler.counters.steps_mixed > 0
    assert scheduler.counters.prefix_hit_tokens > 0
    assert_greedy(both, tokens)


@pytest.mark.parametrize("memory", ["padded", "paged", "private blocks"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_launch_waits_for_nothing(reference: Callable[[str], Any], memory: str, temperature: float) -> None:
    """Swaps, a prompt beside decodes, and sampling: no call in it may make the host wait for the GPU."""
    ours = loaded("ours", copy.deepcopy(reference("qwen2").ours.model).cuda())
    desk = Desk(executor_of(ours, memory), [list(range(20, 20 + length)) for length in (9, 6, 11)])
    sampling = SamplingParams(temperature=temperature, top_p=0.9, top_k=50, min_p=0.01)
    desk.states = {place: state._replace(sampling=sampling) for place, state in desk.states.items()}
    launch = desk.executor.launch

    def watched(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    serve_by_hand(desk, memory)  # libraries may wait when they are first used
    desk.executor.launch = watched  # type: ignore[method-assign]
    serve_by_hand(desk, memory)


def serve_by_hand(desk: Desk, memory: str) -> None:
    for place, prompt in enumerate(desk.prompts):
        del desk.states[place].token_ids[len(prompt) :]
    desk.tables = {0: [0, 1, 2, 3], 1: [4, 5, 6, 7, 8], 2: [1, 0, 3, 2, 9]}
    desk.step(desk.prefill(0), desk.prefill(1), released=[0, 1, 2])
    desk.step(desk.decode(0, 1))
    rows = [desk.prefill(2)] if memory == "padded" else [desk.prefill(2), desk.decode(1)]
    desk.step(*rows, swapped_out=[desk.swap(0)])
    desk.tables[0] = [10, 11, 12, 13]
    desk.step(desk.decode(0, 1, 2), swapped_in=[desk.swap(0)])


def test_sampled_tokens_do_not_depend_on_the_schedule(reference: Callable[[str], Any]) -> None:
    ours = loaded("ours", copy.deepcopy(reference("qwen2").ours.model).cuda())
    sampling = SamplingParams(temperature=0.8, seed=5)
    runs = [
        serve(ours, sampling, policy=policy, layout="paged", kv_tokens=kv_tokens)[0]
        for policy, kv_tokens in (("fcfs", 96), ("sjf", 4096), ("static", 4096))
    ]
    assert runs[0] == runs[1] == runs[2]
