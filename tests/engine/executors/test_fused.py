"""The fused executor serves what transformers' ``generate`` gives, with every part, on a CPU and on a GPU."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import pytest
import torch
from tiny_models import assert_greedy, output_tokens, prompts_of, served
from transformers import Gemma2Config, OPTConfig
from transformers.models.auto import AutoModelForCausalLM

from engine.errors import ModelError
from engine.executors import FusedExecutor, PaddedExecutor, PagedExecutor, build_executor
from engine.fused.graphs import DecodeSteps
from engine.models import LoadedModel, loaded
from scheduler.config import ConfigError, SchedulerConfig
from scheduler.graphs import graph_sizes
from scheduler.plan import StepPlan
from scheduler.request import Request, SamplingParams
from scheduler.scheduler import Scheduler
from simulator.costs import IntegerCosts
from simulator.replica import simulate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: memory in which the requests push each other out
TIGHT = {"kv_pool": "paged", "kv_tokens": 96, "block_tokens": 4, "max_prefill_tokens": 16}


def fused(model: LoadedModel, config: SchedulerConfig) -> FusedExecutor:
    return FusedExecutor(
        model, kv_tokens=config.capacity_tokens, max_running=config.max_running, max_rows=config.rows,
        block_tokens=config.block_tokens, kv_pool=config.pool, graph_rows=config.graph_rows,
    )  # fmt: skip


def on_device(both: Any) -> LoadedModel:
    return loaded("fused", copy.deepcopy(both.ours.model).to(DEVICE))


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"graph_rows": ()},
        {"graph_rows": (2, 3), "max_running": 5},
        TIGHT,
        {**TIGHT, "preemption": "swap"},
        {**TIGHT, "phase": "mixed", "chunk_tokens": 12},
        {"kv_pool": "contiguous", "kv_tokens": 200, "block_tokens": 4, "max_rows": 2},
        {"prefix_cache": True, "block_tokens": 4, "phase": "mixed", "chunk_tokens": 20},
        {**TIGHT, "policy": "srpt", "oracle": "true"},
    ],
    ids=["plain", "no graphs", "graphs for some", "tight", "swap", "mixed", "contiguous", "prefix", "srpt"],
)
@pytest.mark.parametrize("family", ["qwen2", "glm4"])
def test_greedy_tokens_are_transformers(reference: Any, family: str, settings: dict[str, Any], overlap: bool) -> None:
    both = reference(family)
    prompts = prompts_of(512)
    prompts[3][:4] = prompts[4][:4]
    settings = {"graph_rows": graph_sizes(16), **settings}
    tokens, scheduler = served(on_device(both), fused, prompts, overlap=overlap, **settings)
    assert_greedy(both, tokens, prompts)
    if settings.get("kv_tokens") == 96:
        assert scheduler.counters.preemptions


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "sampling", [SamplingParams(temperature=0.8, seed=4), SamplingParams(temperature=1.2, top_k=20, top_p=0.9, seed=4)]
)
def test_sampled_tokens_are_those_of_the_plain_executor(
    reference: Any, sampling: SamplingParams, overlap: bool
) -> None:
    both = reference("llama")
    prompts = prompts_of(512)

    def plain(model: LoadedModel, config: SchedulerConfig) -> PagedExecutor:
        return PagedExecutor(model, kv_tokens=config.capacity_tokens, max_running=config.max_running)

    expected, _ = served(loaded("plain", copy.deepcopy(both.ours.model)), plain, prompts, sampling)
    found, _ = served(on_device(both), fused, prompts, sampling, overlap=overlap, **TIGHT)
    same = sum(found[name] == expected[name] for name in expected)
    # one near-tie may go the other way on another device
    assert same >= len(expected) - (DEVICE == "cuda")


def test_an_abort_in_flight_leaves_the_others_alone(reference: Any) -> None:
    both = reference("qwen2")
    prompts = prompts_of(512)
    tokens, scheduler = served(on_device(both), fused, prompts, abort="2", overlap=True, **TIGHT)
    assert scheduler.counters.aborted == 1
    assert len(tokens.pop("2")) < output_tokens(2)
    for name, found in tokens.items():
        expected = both.greedy(prompts[int(name)], output_tokens(int(name)))
        assert found[: len(expected)] == expected


def test_what_plain_executors_cannot_run_is_run_fused_or_refused() -> None:
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=64, sliding_window=8,
    )  # fmt: skip
    model = loaded("gemma", AutoModelForCausalLM.from_config(config, attn_implementation="lockstep").to(DEVICE))
    settings = SchedulerConfig(kv_tokens=256, context_tokens=64, max_running=4)
    assert isinstance(build_executor(model, settings), FusedExecutor)
    with pytest.raises(ModelError, match="sliding window of 8 tokens, attn_logit_softcapping"):
        PaddedExecutor(model, max_running=2)


def test_a_step_computes_the_rows_of_its_graph_in_both_worlds(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plan says of a graph is what the executor runs, and a simulation counts the same."""
    computed: list[int] = []
    planned: list[int] = []
    run, launch = DecodeSteps.size_for, FusedExecutor.launch

    def size_for(steps: DecodeSteps, rows: int) -> int:
        computed.append(run(steps, rows))
        return computed[-1]

    def watched(executor: FusedExecutor, plan: StepPlan, states: Any) -> Any:
        if plan.kind == "decode":
            planned.append(plan.features.graph_rows)
        return launch(executor, plan, states)

    monkeypatch.setattr(DecodeSteps, "size_for", size_for)
    monkeypatch.setattr(FusedExecutor, "launch", watched)
    prompts = prompts_of(512)
    settings = {"graph_rows": graph_sizes(6), "max_running": 6}
    _, scheduler = served(on_device(reference("qwen2")), build_executor, prompts, **settings)
    assert computed == planned
    assert set(planned) > {1, 4}
    counters = scheduler.counters
    assert counters.graph_rows == sum(planned) == counters.linear_computed_decode
    assert counters.graph_rows_used == counters.linear_useful_decode < counters.graph_rows
    twin = simulate(
        [Request(str(p), 0, len(t), output_tokens(p), output_tokens(p)) for p, t in enumerate(prompts)],
        Scheduler(scheduler.config), IntegerCosts(),
    )  # fmt: skip
    timed = ("longest_", "_token_ns", "over_threshold")
    for name, value in asdict(twin.counters).items():
        assert any(word in name for word in timed) or value == getattr(counters, name), name
    assert twin.digest.hexdigest() == scheduler.digest.hexdigest()


def test_graphs_that_no_executor_has_are_refused(reference: Any) -> None:
    with pytest.raises(ConfigError, match="graph_rows are for the paged layout"):
        SchedulerConfig(layout="padded", graph_rows=(1, 2))
    opt = OPTConfig(vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=2,
                    word_embed_proj_dim=32, max_position_embeddings=64)  # fmt: skip
    model = loaded("opt", AutoModelForCausalLM.from_config(opt, attn_implementation="lockstep"))
    settings = SchedulerConfig(kv_tokens=256, context_tokens=64, max_running=4, graph_rows=(1, 2, 4))
    with pytest.raises(ConfigError, match="'opt' is not run by the executor that has graphs"):
        build_executor(model, settings)
