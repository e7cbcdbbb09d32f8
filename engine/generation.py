"""What the engine keeps of a request while it is served: its tokens, and its text where somebody wants it."""

from __future__ import annotations

from engine.sampling import request_seed
from engine.tokenizer import StopChecker, Tokenizer
from scheduler.plan import StopReason
from scheduler.request import Request, SamplingParams


class Generation:
    """A request's tokens so far, its random seed, and the text that its output makes.

    Text is followed only where it is wanted or where stop strings are to be found. A request with a hidden output
    length plays that length out: the model's end token does not end it.
    """

    def __init__(
        self, request: Request, end_token_ids: frozenset[int], tokenizer: Tokenizer | None, wants_text: bool
    ) -> None:
        if request.prompt_token_ids is None:
            raise ValueError(f"request {request.id} has no prompt_token_ids; the engine needs the tokens themselves")
        if request.sampling.stop and tokenizer is None:
            raise ValueError(f"request {request.id} has stop strings, but the engine has no tokenizer to see them with")
        self.request = request
        self.token_ids: list[int] = list(request.prompt_token_ids)
        self.seed = request_seed(request.sampling, request.id)
        plays_out = request.output_tokens is not None or request.sampling.ignore_eos
        self._end_token_ids = frozenset() if plays_out else end_token_ids
        follows_text = tokenizer is not None and (wants_text or request.sampling.stop)
        self._stream = tokenizer.stream() if tokenizer is not None and follows_text else None
        self._stops = StopChecker(request.sampling.stop)

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    def accept(self, token_id: int) -> tuple[str, StopReason | None]:
        """Take the next token: the text that it makes certain, and why the request ends with it, if it does."""
        self.token_ids.append(token_id)
        if token_id in self.sampling.stop_token_ids:
            return "", "stop"
        if token_id in self._end_token_ids:
            return "", "eos"
        if self._stream is None:
            return "", None
        text = self._stops.push(self._stream.push(token_id))
        return text, "stop" if self._stops.stopped else None

    def finish(self) -> str:
        """The text that was held back, when the request has ended."""
        if self._stream is None:
            return ""
        return self._stops.push(self._stream.flush()) + self._stops.flush()
