"""Log-probabilities as OpenAI's two endpoints show them. An end token, which gives no text, has none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from engine.draws import TokenLogprobs
from engine.loop import TokenOutput
from serving.token_texts import TokenTexts

#: JSON has no infinity; what OpenAI says of a token that is impossible
LEAST = -9999.0


def shown(outputs: Iterable[TokenOutput], end_token_ids: Iterable[int]) -> list[tuple[int, TokenLogprobs]]:
    """The tokens of ``outputs`` that are part of the text, with their log-probabilities."""
    ends = frozenset(end_token_ids)
    return [
        (output.token_id, output.logprobs)
        for output in outputs
        if output.token_id is not None and output.logprobs is not None
        if not (output.finish_reason in ("eos", "stop") and output.token_id in ends)
    ]


def chat_logprobs(tokens: Sequence[tuple[int, TokenLogprobs]], texts: TokenTexts) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat completion."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text, raw = texts.of(token_id)
        return {"token": text, "logprob": _finite(logprob), "bytes": raw}

    content = [
        {**entry(token_id, logprobs.logprob), "top_logprobs": [entry(*top) for top in logprobs.top]}
        for token_id, logprobs in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokens: Sequence[tuple[int, TokenLogprobs]], texts: TokenTexts, offset: int
) -> dict[str, Any]:  # fmt: skip
    """``choices[].logprobs`` of a completion; ``offset`` is where in its text the first token begins."""
    names = [texts.of(token_id)[0] for token_id, _ in tokens]
    offsets = []
    for name in names:
        offsets.append(offset)
        offset += len(name)
    return {
        "tokens": names,
        "token_logprobs": [_finite(logprobs.logprob) for _, logprobs in tokens],
        "top_logprobs": [
            {
                **{texts.of(top_id)[0]: _finite(logprob) for top_id, logprob in logprobs.top},
                texts.of(token_id)[0]: _finite(logprobs.logprob),
            }
            for token_id, logprobs in tokens
        ],
        "text_offset": offsets,
    }


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST
