"""What goes through an engine, token by token: counted and timed at next to no cost, for whoever shows it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

from engine.loop import TokenOutput
from scheduler.request import Request
from serving.exchanges import CURRENT, EndedRequest, Exchange
from serving.latencies import MANY, Durations, Sizes, one_two_five

# vLLM's edges, and finer ones where a fast engine's figures are
TTFT_EDGES_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5,
                10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
TOKEN_EDGES_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5,
                 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
REQUEST_EDGES_S = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0,
                   50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip

#: vLLM's word for each reason by which a request ends, and what of them is a success
FINISHED = {"length": "length", "eos": "stop", "stop": "stop", "aborted": "abort", "error": "error"}
SUCCESSES = ("length", "eos", "stop")


class _Live:
    """A request that has not ended. Times are the front's monotonic nanoseconds."""

    __slots__ = ("exchange", "first_ns", "last_ns", "request", "submitted_ns", "tokens")

    def __init__(self, request: Request, submitted_ns: int, exchange: Exchange | None) -> None:
        self.request = request
        self.submitted_ns = submitted_ns
        self.first_ns: int | None = None
        self.last_ns = 0
        self.tokens = 0
        self.exchange = exchange


class Traffic:
    """An :class:`~serving.engine_client.EngineListener`. ``ended`` is called with each request that has ended.

    Times to the first token, between tokens and in all are the front's: from the moment a request is handed in to the
    moment its news come. Queue, prefill and decode times are the engine's own. Latencies and lengths in all are those
    of finished requests; one that was aborted or failed is counted, and no more.
    """

    def __init__(
        self,
        context_tokens: int,
        ended: Callable[[EndedRequest], None] = lambda _: None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._ended = ended
        self._clock_ns = clock_ns
        self._live: dict[str, _Live] = {}
        self._second_ns = 0
        #: of requests that have their first token
        self.prompt_tokens = 0
        self.output_tokens = 0
        #: by the engine's reason
        self.finished: Counter[str] = Counter()
        self.ttft = Durations(TTFT_EDGES_S)
        self.itl = Durations(TOKEN_EDGES_S)
        self.tpot = Durations(TOKEN_EDGES_S)
        self.e2e = Durations(REQUEST_EDGES_S)
        self.queue = Durations(REQUEST_EDGES_S)
        self.prefill = Durations(REQUEST_EDGES_S)
        self.decode = Durations(REQUEST_EDGES_S)
        self.inference = Durations(REQUEST_EDGES_S)
        self._durations = (
            self.ttft, self.itl, self.tpot, self.e2e, self.queue, self.prefill, self.decode, self.inference
        )  # fmt: skip
        self.prompt_lengths = Sizes(one_two_five(context_tokens))
        self.output_lengths = Sizes(one_two_five(context_tokens))
        self.max_tokens = Sizes(one_two_five(context_tokens))

    @property
    def in_flight(self) -> int:
        """Requests that have been handed in and have not ended."""
        return len(self._live)

    def submitted(self, requests: Sequence[Request]) -> None:
        now_ns = self._clock_ns()
        exchange = CURRENT.get()
        for request in requests:
            self._live[request.id] = _Live(request, now_ns, exchange)
        if exchange is not None:
            exchange.open += len(requests)

    def told(self, outputs: Sequence[TokenOutput]) -> None:
        now_ns = self._clock_ns()
        live_of, gaps = self._live.get, self.itl.pending
        tokens = 0
        for output in outputs:
            live = live_of(output.request_id)
            if live is None:
                continue
            if output.token_id is not None:
                tokens += 1
                live.tokens += 1
                if live.first_ns is None:
                    self._first_token(live, now_ns)
                else:
                    gaps.append(now_ns - live.last_ns)
                live.last_ns = now_ns
            if output.finish_reason:
                self._end(live, output, now_ns)
        self.output_tokens += tokens
        if len(gaps) >= MANY or now_ns - self._second_ns >= 1_000_000_000:
            self.settle(now_ns)

    def gone(self, reason: str, lost: int) -> None:
        now_ns = self._clock_ns()
        for live in list(self._live.values()):
            self._end(live, TokenOutput(live.request.id, None, "", "error", reason), now_ns)

    def settle(self, now_ns: int | None = None) -> None:
        """Count everything that is pending."""
        self._second_ns = now_ns = self._clock_ns() if now_ns is None else now_ns
        for durations in self._durations:
            durations.settle(now_ns)

    def recent(self) -> dict[str, dict[str, float | int | None]]:
        """Latencies of the last minute, in milliseconds."""
        now_ns = self._clock_ns()
        return {"ttft": self.ttft.recent(now_ns), "itl": self.itl.recent(now_ns), "e2e": self.e2e.recent(now_ns)}

    def _first_token(self, live: _Live, now_ns: int) -> None:
        live.first_ns = now_ns
        self.prompt_tokens += live.request.prompt_tokens
        self.ttft.pending.append(now_ns - live.submitted_ns)

    def _end(self, live: _Live, output: TokenOutput, now_ns: int) -> None:
        request, metrics = live.request, output.metrics
        del self._live[request.id]
        self.finished[output.finish_reason] += 1
        if output.finish_reason in SUCCESSES:
            self.e2e.pending.append(now_ns - live.submitted_ns)
            self.prompt_lengths.add(request.prompt_tokens)
            self.output_lengths.add(live.tokens)
            self.max_tokens.add(request.max_tokens)
            if live.first_ns is not None and live.tokens > 1:
                self.tpot.pending.append((live.last_ns - live.first_ns) // (live.tokens - 1))
            if metrics is not None and metrics.first_scheduled_ns is not None and metrics.first_token_ns is not None:
                self.queue.pending.append(metrics.first_scheduled_ns - metrics.arrival_ns)
                self.prefill.pending.append(metrics.first_token_ns - metrics.first_scheduled_ns)
                self.decode.pending.append(metrics.finish_ns - metrics.first_token_ns)
                self.inference.pending.append(metrics.finish_ns - metrics.first_scheduled_ns)
        self._ended(
            EndedRequest(
                request,
                live.exchange,
                live.tokens,
                output.finish_reason,
                output.detail,
                live.submitted_ns,
                live.first_ns,
                now_ns,
                time.time_ns(),
                metrics,
            )
        )
