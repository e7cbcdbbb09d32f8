"""What the engine keeps of a request while it is served: its tokens, and its text where somebody wants it."""

from __future__ import annotations

from engine.draws import Draw, request_seed
from engine.grammar import GrammarMatcher
from engine.logit_edits import RequestEdits
from engine.tokenizer import StopChecker, Tokenizer
from scheduler.plan import StopReason
from scheduler.request import Request, SamplingParams


class Generation:
    """A request's tokens so far, its random seed, and the text that its output makes.

    Text is followed only where it is wanted or where stop strings are to be found. A request with a hidden output
    length plays that length out: the model's end token does not end it. ``vocab`` is the width of the model's logits,
    ``grammar`` follows the request's own.
    """

    def __init__(
        self,
        request: Request,
        end_token_ids: frozenset[int],
        tokenizer: Tokenizer | None,
        wants_text: bool,
        vocab: int,
        grammar: GrammarMatcher | None = None,
    ) -> None:
        if request.prompt_token_ids is None:
            raise ValueError(f"request {request.id} has no prompt_token_ids; the engine needs the tokens themselves")
        sampling = request.sampling
        self.request = request
        self.token_ids: list[int] = list(request.prompt_token_ids)
        self.seed = request_seed(sampling, request.id)
        #: the temperature and the seed say all about how its tokens are drawn
        self.plain = sampling.plain
        self._end_token_ids = frozenset() if plays_out(request) else end_token_ids
        follows_text = tokenizer is not None and (wants_text or sampling.stop)
        self._stream = tokenizer.stream() if tokenizer is not None and follows_text else None
        self._stops = StopChecker(sampling.stop)
        self._grammar = grammar
        self._edits: RequestEdits | None = None
        self._last_ids = self._end_token_ids.union(sampling.stop_token_ids)
        #: nothing but ids is followed
        self._only_ids = self.plain and self._stream is None and grammar is None
        if not self.plain:
            self._edits = RequestEdits(sampling, request.prompt_token_ids, self._last_ids, vocab, grammar)
            #: what the device is to know of ``sampling``
            self._drawn = SamplingParams(
                sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, logprobs=sampling.logprobs
            )

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    def draw(self, position: int) -> Draw:
        """What the token at ``position`` is sampled with.

        Raises ``RuntimeError`` where that follows from tokens which are not known yet.
        """
        if self._edits is None:
            return Draw(self.sampling, self.seed, position)
        if self.sampling.follows_output and position != len(self.token_ids):
            raise RuntimeError(
                f"request {self.request.id}: the token at {position} follows from those before it, and "
                f"{len(self.token_ids)} are known"
            )
        return Draw(self._drawn, self.seed, position, self._edits.after(position - self.request.prompt_tokens))

    def accept(self, token_id: int) -> tuple[str, StopReason | None]:
        """Take the next token: the text that it makes certain, and why the request ends with it, if it does.

        Raises :class:`~engine.grammar.GrammarError` where its grammar cannot be followed any further.
        """
        self.token_ids.append(token_id)
        if token_id in self._last_ids:
            return "", "stop" if token_id in self.sampling.stop_token_ids else "eos"
        if self._only_ids:
            return "", None
        if self._edits is not None:
            self._edits.accept(token_id)
        if self._grammar is not None:
            self._grammar.accept(token_id)
        text = ""
        if self._stream is not None:
            early = len(self.token_ids) - self.request.prompt_tokens < self.sampling.min_tokens
            text = self._stops.push(self._stream.push(token_id), may_stop=not early)
        stopped = self._stops.stopped or (self._grammar is not None and self._grammar.complete)
        return text, "stop" if stopped else None

    def finish(self) -> str:
        """The text that was held back, when the request has ended."""
        if self._stream is None:
            return ""
        return self._stops.push(self._stream.flush()) + self._stops.flush()


def plays_out(request: Request) -> bool:
    """Whether the model's end token does not end the request."""
    return request.output_tokens is not None or request.sampling.ignore_eos
