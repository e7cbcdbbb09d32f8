"""Tiny random models of every family, transformers' own answers for them, and ways to run them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig
from transformers.models.auto import AutoModelForCausalLM

from engine.attention import ATTENTION
from engine.executors import default_graphs
from engine.fused.decoder import Chunks, Decoder, KvCache, Rows, StepTensors
from engine.loop import EngineLoop, TokenOutput
from engine.models import LoadedModel, loaded
from scheduler.config import SchedulerConfig
from scheduler.request import Request, SamplingParams
from scheduler.scheduler import Scheduler

#: below this distance between the best two logits, two correct float32 computations may choose differently
TIE = 1e-3
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCK_TOKENS = 16
VOCAB = 211
COMMON = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": None,
    "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2,
}  # fmt: skip
_WINDOW = {"sliding_window": 20}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_HALF = {"rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}}


class Variant(NamedTuple):
    """A configuration of a family: ``family``, and what it has beyond :data:`COMMON`."""

    family: str
    name: str
    extras: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.family} {self.name}".strip()


VARIANTS = [
    Variant("llama", "", {}),
    Variant("llama", "llama3", {"attention_bias": True, "mlp_bias": True, "rope_parameters": {
        **_ROPE, "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}}),
    Variant("llama", "linear", {"rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 2.0}}),
    Variant("qwen2", "", {}),
    Variant("qwen2", "windows", {**_WINDOW, "use_sliding_window": True, "max_window_layers": 1}),
    Variant("qwen2", "yarn", {"rope_parameters": {
        **_ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
    Variant("qwen3", "", {"tie_word_embeddings": True}),
    Variant("glm", "", {"attention_bias": True, **_HALF}),
    Variant("glm4", "", {"attention_bias": True, **_HALF}),
    Variant("mistral", "", {"sliding_window": None}),
    Variant("mistral", "windows", _WINDOW),
    Variant("gemma", "", {"tie_word_embeddings": True}),
    Variant("gemma2", "", {**_WINDOW, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0,
                           "query_pre_attn_scalar": 24, "tie_word_embeddings": True}),
    Variant("gemma3_text", "", {**_WINDOW, "query_pre_attn_scalar": 24, "tie_word_embeddings": True,
                                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                                "rope_parameters": {"sliding_attention": _ROPE, "full_attention": {
                                    "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}}),
    Variant("phi3", "", {"sliding_window": None, **_HALF}),
    Variant("phi3", "windows", _WINDOW),
]  # fmt: skip


def variants(family: str) -> list[Variant]:
    return [variant for variant in VARIANTS if variant.family == family]


def build(variant: Variant, dtype: torch.dtype, attention: str) -> Any:
    """A random model, on :data:`DEVICE`. Norms and biases have values that are felt, which new models' do not."""
    config = AutoConfig.for_model(variant.family, **COMMON | variant.extras)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
                if "gemma" not in variant.family and not name.endswith("bias"):
                    parameter.data += 1
    return model.to(DEVICE, dtype).eval()


def prompt(seed: int = 5) -> list[int]:
    """Longer than any window."""
    ids: list[int] = torch.randint(0, VOCAB, (45,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


# -- transformers' answers


class Reference:
    """A model, and the same weights under transformers' own attention."""

    def __init__(self, ours: LoadedModel, theirs: LoadedModel) -> None:
        self.ours = ours
        self.theirs = theirs
        self._known: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        """Tokens of transformers' ``generate``, up to the first near-tie."""
        key = (tuple(prompt), tokens)
        if key not in self._known:
            self._known[key] = self._generate(prompt, tokens)
        return self._known[key]

    def _generate(self, prompt: list[int], tokens: int) -> list[int]:
        model: Any = self.theirs.model
        given = torch.tensor([prompt], device=model.device)
        output = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        chosen: list[int] = []
        for token, logits in zip(output.sequences[0, len(prompt) :].tolist(), output.logits, strict=True):
            best, second = logits[0].float().topk(2).values.tolist()
            if best - second < TIE:
                break
            chosen.append(token)
        return chosen


def reference_of(variant: Variant) -> Reference:
    """A model of ``variant`` in float32, with its twin."""
    ours, theirs = (
        loaded(str(variant), build(variant, torch.float32, attention)) for attention in (ATTENTION, "eager")
    )
    return Reference(ours, theirs)


# -- the decoder by itself


class DecoderSequence:
    """One sequence that a decoder runs over paged KV in shuffled blocks."""

    def __init__(self, decoder: Decoder, model: Any) -> None:
        self.decoder = decoder
        self.cache = KvCache(model, 9, BLOCK_TOKENS)
        for tensor in self.cache.keys + self.cache.values:
            tensor.fill_(torch.nan)
        self.blocks = torch.tensor([5, 2, 7, 0, 8, 3, 1, 6], device=DEVICE)
        self.done = 0

    def run(self, ids: list[int], as_row: bool = False) -> torch.Tensor:
        """Logits after each of ``ids``, which are run as one chunk or (one of them) as a decode row."""
        positions = torch.arange(self.done, self.done + len(ids), device=DEVICE)
        slots = self.blocks[positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
        tables = self.blocks[None].int()
        chunks = rows = None
        if as_row:
            rows = Rows(tables, torch.tensor([self.done + 1], dtype=torch.int32, device=DEVICE))
        else:
            starts = torch.tensor([self.done], dtype=torch.int32, device=DEVICE)
            offsets = torch.tensor([0, len(ids)], dtype=torch.int32, device=DEVICE)
            chunks = Chunks(tables, starts, offsets, len(ids))
        self.done += len(ids)
        step = StepTensors(torch.tensor(ids, device=DEVICE), positions, slots, chunks, rows)
        return self.decoder.logits(self.decoder.forward(step, self.cache)).float()


class Errors(NamedTuple):
    """Distances of logits from those in float32."""

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def logit_errors(variant: Variant, dtype: torch.dtype) -> Errors:
    """Of the fused decoder and of transformers in ``dtype``, over some prompts: one alone varies by a tenth."""
    with torch.inference_mode():
        prompts = [prompt(seed) for seed in range(8)]
        given = torch.tensor(prompts, device=DEVICE)
        exact = build(variant, torch.float32, "eager")(given, use_cache=False).logits
        model = build(variant, dtype, "eager")
        theirs = model(given, use_cache=False).logits.float()
        ours = loaded(str(variant), model)
        decoder = Decoder(ours)
        found = torch.stack([DecoderSequence(decoder, ours).run(ids) for ids in prompts])
        return Errors(float((found - exact).norm()), float((theirs - exact).norm()))


# -- the whole engine


LENGTHS = (3, 17, 17, 5, 33, 48, 5, 20)


def output_tokens(place: int) -> int:
    """Different for every request, so that batches thin out."""
    return 6 + place * 5 % 9


def prompts_of(vocab: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    source = random.Random(3)
    return [[source.randrange(10, vocab) for _ in range(length)] for length in lengths]


def served(
    model: LoadedModel,
    executor: Any,
    prompts: list[list[int]],
    sampling: SamplingParams | None = None,
    abort: str | None = None,
    **settings: Any,
) -> tuple[dict[str, list[int]], Scheduler]:
    """Tokens of every prompt, served together; ``executor`` makes one of a model and the scheduler's settings."""
    config = SchedulerConfig.from_dict({"kv_tokens": 4096, "context_tokens": model.context_tokens, **settings})
    if "graph_rows" not in settings:
        config = replace(config, graph_rows=default_graphs(model, config).graph_rows)
    scheduler = Scheduler(config)
    tokens: dict[str, list[int]] = {str(place): [] for place in range(len(prompts))}

    def hear(output: TokenOutput) -> None:
        if output.token_id is not None:
            tokens[output.request_id].append(output.token_id)
            if output.request_id == abort and len(tokens[abort]) == 3:
                loop.abort(abort)

    loop = EngineLoop(scheduler, executor(model, config), listener=hear)
    loop.run(
        Request(
            str(place), 0, len(prompt), output_tokens(place), output_tokens(place), prompt_token_ids=tuple(prompt),
            sampling=sampling or SamplingParams(),
        )
        for place, prompt in enumerate(prompts)
    )  # fmt: skip
    assert scheduler.idle
    return tokens, scheduler


def assert_greedy(reference: Any, tokens: dict[str, list[int]], prompts: list[list[int]]) -> None:
    """The tokens are transformers' own, up to the first near-tie of each prompt."""
    compared = 0
    for place, prompt in enumerate(prompts):
        expected = reference.greedy(prompt, output_tokens(place))
        assert tokens[str(place)][: len(expected)] == expected
        assert len(tokens[str(place)]) == output_tokens(place)
        compared += len(expected)
    assert compared > sum(map(output_tokens, range(len(prompts)))) // 2, "too many near-ties to say much"
