"""An engine without a device: the real scheduler and loop, steps that take what a cost model says, made-up tokens.

For testing clients, routers and autoscalers, and for trying a policy under real HTTP traffic, without a GPU. A step
ends when it would have on the hardware that the costs stand for, or later where this machine cannot keep up. Texts are
made of a tokenizer's words, each as likely as any other, whatever else a request asks of its tokens; its grammar
could not be followed. A request ends with an end token after :data:`TYPICAL_TOKENS` tokens on average (exponentially
distributed, by its seed), but not before its ``min_tokens`` nor if it ignores end tokens, or with its ``max_tokens``.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from core.costs import cost_notes, graphs_of_costs, read_costs
from engine.draws import TokenLogprobs, row_key
from engine.embedded import default_cache_folder, embedded_model_folder
from engine.light_tokenizer import LightTokenizer, parts_in
from engine.pretrained import load_tokenizer
from engine.steps import SequenceState, StepResult
from engine.tokenizer import Tokenizer
from scheduler.config import SchedulerConfig
from scheduler.plan import Layout, StepPlan, iter_sampled
from scheduler.scheduler import Scheduler
from serving.engine_process import Parts
from serving.messages import EngineInfo, EngineSettings
from simulator.costs import CostModel, prefill_token_ns
from simulator.projection import ProjectedCosts
from simulator.recorded import RecordedCosts

#: output tokens of a request that may end by itself, on average
TYPICAL_TOKENS = 256
#: how many different words texts are made of
WORDS = 4096
_WORD = re.compile(r" [a-z]{2,12}")


class WordTokenizer(Tokenizer):
    """A tokenizer for texts that are made of words which are a token each: a look-up gives their text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer.underlying)
        ids = sorted(self.underlying.get_vocab().values())
        pairs = [(token_id, text) for token_id in ids if _WORD.fullmatch(text := self.literal([token_id]))]
        self.words = dict(pairs[:: max(1, len(pairs) // WORDS)])

    def stream(self) -> WordStream:  # type: ignore[override]
        return WordStream(self.words)


class WordStream:
    """As :class:`~engine.tokenizer.TextStream`: every word is certain at once."""

    def __init__(self, words: Mapping[int, str]) -> None:
        self._words = words

    def push(self, token_id: int) -> str:
        return self._words.get(token_id, "")

    def flush(self) -> str:
        return ""


@dataclass(frozen=True)
class EmulatedStep:
    """A step on the emulated device. A :class:`~engine.steps.PendingStep`."""

    tokens: dict[int, int]
    logprobs: dict[int, TokenLogprobs]
    end_ns: int
    device_ns: int

    def result(self) -> StepResult:
        left_ns = self.end_ns - time.monotonic_ns()
        if left_ns > 0:
            time.sleep(left_ns / 1e9)
        return StepResult(self.tokens, self.device_ns, logprobs=self.logprobs)


class EmulatedExecutor:
    """Takes the time that ``costs`` say, and makes tokens up out of ``words``. Without overlap host time adds up.

    An :class:`~engine.steps.Executor`. The host's own work here is part of the step's time, not added to it.
    """

    launches_ahead = False

    def __init__(
        self,
        costs: CostModel,
        layout: Layout,
        overlap: bool,
        vocab: int,
        words: Sequence[int],
        end_token_id: int | None,
    ) -> None:
        self.layout: Layout = layout
        self.vocab = vocab
        self._costs = costs
        self._overlap = overlap
        self._words = words
        self._end_token_id = end_token_id
        self._end_ns = 0

    def launch(self, plan: StepPlan, states: Mapping[int, SequenceState]) -> EmulatedStep:
        columns = plan.columns()
        device_ns, host_ns = int(self._costs.device_ns(columns)), int(self._costs.host_ns(columns))
        period_ns = max(device_ns, host_ns) if self._overlap else device_ns + host_ns
        self._end_ns = max(self._end_ns + period_ns, time.monotonic_ns() + device_ns)
        sampled, tokens = {}, {}
        for sequence in iter_sampled(plan):
            state = sampled[sequence.number] = states[sequence.number]
            tokens[sequence.number] = self._token(state, first=len(state.token_ids) == sequence.prompt_tokens)
        logprobs = {
            number: self._logprobs(state.sampling.logprobs)
            for number, state in sampled.items()
            if state.sampling.logprobs is not None
        }
        return EmulatedStep(tokens, logprobs, self._end_ns, device_ns)

    def reset(self) -> None:
        self._end_ns = 0

    def close(self) -> None:
        """Nothing of its own runs."""

    def _token(self, state: SequenceState, first: bool) -> int:
        """A word, or now and then the end; an answer has one word at least."""
        key = row_key(state.seed, len(state.token_ids))
        if key % TYPICAL_TOKENS == 0 and not first and self._may_end(state):
            assert self._end_token_id is not None
            return self._end_token_id
        return self._words[key // TYPICAL_TOKENS % len(self._words)]

    def _may_end(self, state: SequenceState) -> bool:
        if self._end_token_id is None or state.sampling.ignore_eos:
            return False
        edits = state.draw(len(state.token_ids)).edits
        return edits is None or self._end_token_id not in edits.banned

    def _logprobs(self, count: int) -> TokenLogprobs:
        logprob = -math.log(len(self._words))
        return TokenLogprobs(logprob, 1, tuple((word, logprob) for word in self._words[:count]))


def emulated_parts(settings: EngineSettings) -> Parts:
    """The engine that ``settings.emulate`` names by its costs: ``h100-qwen-7b``, ``roofline:GPU:MODEL``, a run folder.

    KV memory, context, block size and graphs are those of the costs, unless the settings say another.
    Raises :class:`~simulator.costs.CostError`, :class:`~scheduler.config.ConfigError` or
    :class:`~engine.errors.ModelError` (the tokenizer).
    """
    assert settings.emulate is not None
    costs = read_costs(settings.emulate)
    config = _config(costs, settings.scheduler)
    if settings.tokenizer is None:
        found = Tokenizer(LightTokenizer(parts_in(embedded_model_folder(default_cache_folder()))))
    else:
        found = load_tokenizer(settings.tokenizer)
    tokenizer = WordTokenizer(found)
    ends = tokenizer.underlying.eos_token_id
    end_token_id = ends if isinstance(ends, int) else None
    vocab = len(tokenizer.underlying)
    executor = EmulatedExecutor(costs, config.layout, config.overlap, vocab, list(tokenizer.words), end_token_id)
    notes = cost_notes(costs, config)
    info = EngineInfo(
        model=settings.model or settings.emulate,
        tokenizer=found.source,
        vocab=vocab,
        context_tokens=config.context_tokens,
        end_token_ids=frozenset() if end_token_id is None else frozenset({end_token_id}),
        config=config.as_dict(),
        hardware=str(notes.get("costs_of") or notes.get("projection") or costs.name),
        emulated=settings.emulate,
    )
    return Parts(executor, config, tokenizer, info, lambda: None)


def _config(costs: CostModel, asked: Mapping[str, object]) -> SchedulerConfig:
    """The scheduler's settings: what is asked for, and else what ``costs`` were recorded with."""
    layout = SchedulerConfig.from_dict({"layout": asked.get("layout", "paged")}).layout
    found: dict[str, object] = {"overlap": True, "kv_tokens": costs.kv_tokens, "context_tokens": costs.context_tokens}
    if isinstance(costs, RecordedCosts | ProjectedCosts):
        costs.require(layout)
    if isinstance(costs, RecordedCosts):
        found["block_tokens"] = costs.about.get("block_tokens")
    found["prefill_token_ns"] = prefill_token_ns(costs, layout)
    given = {name: value for name, value in {**found, **asked}.items() if value is not None}
    config = Scheduler(SchedulerConfig.from_dict(given)).config
    if layout != "paged":
        return config
    graphs = graphs_of_costs(costs, config)._asdict()
    return replace(config, **{name: sizes for name, sizes in graphs.items() if asked.get(name) is None})
