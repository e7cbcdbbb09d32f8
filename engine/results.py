"""What came of prompts: texts, tokens, why they ended, and how long it took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import overload

from engine.draws import TokenLogprobs
from engine.loop import RequestMetrics, TokenOutput

#: ends that come with a last token
FINISHED = ("length", "eos", "stop")


@dataclass(frozen=True)
class GenerationMetrics:
    """How a request fared; times are seconds. What never happened is ``None``.

    ``queue_s`` is from its arrival to the first step that it is in, ``ttft_s`` to its first token, ``e2e_s`` to its
    end. ``tpot_s`` is the mean time of each token after the first; of one token, or if it did not finish, ``None``.
    """

    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    preemptions: int
    #: prompt tokens whose KV the prefix cache held
    prefix_hit_tokens: int
    #: computed again after an eviction
    recomputed_tokens: int

    @classmethod
    def of(cls, metrics: RequestMetrics, output_tokens: int, finished: bool) -> GenerationMetrics:
        """From the loop's, of a request that has ended."""

        def since(time_ns: int | None) -> float | None:
            return None if time_ns is None else (time_ns - metrics.arrival_ns) / 1e9

        tpot_s = None
        if finished and metrics.first_token_ns is not None and output_tokens > 1:
            tpot_s = (metrics.finish_ns - metrics.first_token_ns) / 1e9 / (output_tokens - 1)
        return cls(
            since(metrics.first_scheduled_ns),
            since(metrics.first_token_ns),
            tpot_s,
            (metrics.finish_ns - metrics.arrival_ns) / 1e9,
            metrics.preemptions,
            metrics.prefix_hit_tokens,
            metrics.recomputed_tokens,
        )


@dataclass(eq=False)
class GenerationResult:
    """What came of one prompt. ``token_ids`` are the output's, an end token included; ``text`` has none of that.

    ``finish_reason`` is ``length`` (``max_tokens`` or the model's context), ``eos`` (the model's end token), ``stop``,
    ``aborted``, or ``error``: the request could not go on, ``error`` says why. The output is what there was until
    then. It is empty while a stream goes on, and ``metrics`` are ``None``. ``logprobs``, where they were asked for, has
    an entry for each token.
    """

    prompt: str
    prompt_token_ids: list[int] = field(repr=False)
    text: str = ""
    token_ids: list[int] = field(default_factory=list, repr=False)
    finish_reason: str = ""
    error: str = ""
    request_id: str = ""
    metrics: GenerationMetrics | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list, repr=False)

    def add(self, output: TokenOutput) -> None:
        """The next news of its request."""
        if output.token_id is not None:
            self.token_ids.append(output.token_id)
        if output.logprobs is not None:
            self.logprobs.append(output.logprobs)
        self.text += output.text
        self.finish_reason = output.finish_reason
        self.error = output.detail
        if output.metrics is not None:
            self.metrics = GenerationMetrics.of(
                output.metrics, len(self.token_ids), finished=output.finish_reason in FINISHED
            )


class GenerationResults:
    """Results in the order of their prompts. ``items()`` gives (result, text); equal prompts have a result each."""

    def __init__(self, results: list[GenerationResult]) -> None:
        self._results = results

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[GenerationResult]:
        return iter(self._results)

    @overload
    def __getitem__(self, key: int) -> GenerationResult: ...

    @overload
    def __getitem__(self, key: GenerationResult) -> str: ...

    def __getitem__(self, key: int | GenerationResult) -> GenerationResult | str:
        """The result at a place in the order of the prompts, or the text of a result."""
        return key.text if isinstance(key, GenerationResult) else self._results[key]

    def keys(self) -> list[GenerationResult]:
        return list(self._results)

    def values(self) -> list[str]:
        return [result.text for result in self._results]

    def items(self) -> list[tuple[GenerationResult, str]]:
        return [(result, result.text) for result in self._results]
