"""The executors on a GPU: the same tokens as transformers' own ``generate`` there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.executors import build_executor
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


@pytest.mark.parametrize("family", ["qwen2", "llama", "glm4"])
@pytest.mark.parametrize("layout", ["padded", "paged"])
@pytest.mark.parametrize("policy", ["fcfs", "sjf-bucket"])
def test_greedy_tokens_equal_generate(reference: Callable[[str], Any], family: str, layout: str, policy: str) -> None:
    both = reference(family)
    ours = loaded("ours", copy.deepcopy(both.ours.model).cuda())
    theirs = copy.deepcopy(both.theirs.model).cuda()
    tokens, scheduler = serve(ours, SamplingParams(), policy=policy, layout=layout)
    assert scheduler.counters.preemptions > 0
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


def test_sampled_tokens_do_not_depend_on_the_schedule(reference: Callable[[str], Any]) -> None:
    ours = loaded("ours", copy.deepcopy(reference("qwen2").ours.model).cuda())
    sampling = SamplingParams(temperature=0.8, seed=5)
    runs = [
        serve(ours, sampling, policy=policy, layout="paged", kv_tokens=kv_tokens)[0]
        for policy, kv_tokens in (("fcfs", 96), ("sjf", 4096), ("static", 4096))
    ]
    assert runs[0] == runs[1] == runs[2]
