"""The listener with news made by hand, at times made by hand, against figures worked out by hand."""

from __future__ import annotations

from engine.loop import RequestMetrics, TokenOutput
from scheduler.request import Request
from serving.exchanges import EndedRequest
from serving.latencies import Durations
from serving.traffic import Traffic

MS = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


def request(name: str, prompt: int, max_tokens: int = 100) -> Request:
    return Request(name, 0, prompt, max_tokens)


def token(name: str, finish: str = "", metrics: RequestMetrics | None = None) -> TokenOutput:
    return TokenOutput(name, 7, " word", finish, metrics=metrics)


def counted(durations: Durations) -> dict[float, int]:
    """How many are in each bucket that holds any."""
    edges = (*durations.edges_s, float("inf"))
    return {edge: int(count) for edge, count in zip(edges, durations.counts, strict=True) if count}


def test_two_requests_token_by_token() -> None:
    clock = Clock()
    ended: list[EndedRequest] = []
    traffic = Traffic(1000, ended.append, clock)
    traffic.submitted([request("a", 30), request("b", 200, 3)])
    assert traffic.in_flight == 2
    # a: tokens at 20, 30 and 70 ms; b: at 30, 70 and 190 ms
    for at_ms, outputs in (
        (20, [token("a")]),
        (30, [token("a"), token("b")]),
        (70, [token("a", "eos", RequestMetrics(5 * MS, 6 * MS, 21 * MS, 69 * MS, 1, 16, 0)), token("b")]),
        (190, [token("b", "length", RequestMetrics(5 * MS, 25 * MS, 29 * MS, 189 * MS, 0, 0, 0))]),
    ):
        clock.now_ns = at_ms * MS
        traffic.told(outputs)
    traffic.settle()
    assert (traffic.prompt_tokens, traffic.output_tokens, traffic.in_flight) == (230, 6, 0)
    assert dict(traffic.finished) == {"eos": 1, "length": 1}
    assert counted(traffic.ttft) == {0.02: 1, 0.04: 1}
    assert traffic.ttft.sum_ns == (20 + 30) * MS
    assert counted(traffic.itl) == {0.01: 1, 0.05: 2, 0.15: 1}
    assert traffic.itl.sum_ns == (10 + 40 + 40 + 120) * MS
    assert counted(traffic.tpot) == {0.025: 1, 0.1: 1}  # 50 / 2 and 160 / 2
    assert counted(traffic.e2e) == {0.1: 1, 0.2: 1}
    assert traffic.queue.sum_ns == (1 + 20) * MS
    assert traffic.prefill.sum_ns == (15 + 4) * MS
    assert traffic.decode.sum_ns == (48 + 160) * MS
    assert traffic.inference.sum_ns == (63 + 164) * MS
    assert (traffic.prompt_lengths.sum, traffic.output_lengths.sum, traffic.max_tokens.sum) == (230, 6, 103)
    first, second = ended
    assert (first.request.id, first.output_tokens, first.finish_reason) == ("a", 3, "eos")
    assert (first.submitted_ns, first.first_token_ns, first.ended_ns) == (0, 20 * MS, 70 * MS)
    assert (second.request.id, second.output_tokens, second.metrics is not None) == ("b", 3, True)


def test_who_is_aborted_is_counted_but_has_no_latency() -> None:
    clock = Clock()
    traffic = Traffic(1000, clock_ns=clock)
    traffic.submitted([request("a", 30), request("b", 10), request("c", 10)])
    clock.now_ns = 20 * MS
    traffic.told([token("a")])
    metrics = RequestMetrics(0, 1, 2, 3, 0, 0, 0)
    traffic.told([TokenOutput("a", None, "", "aborted", metrics=metrics)])
    traffic.told([TokenOutput("b", None, "", "rejected", "too long", metrics=metrics)])
    traffic.told([TokenOutput("b", 7, " after the end"), TokenOutput("never handed in", 7, "")])
    traffic.settle()
    assert dict(traffic.finished) == {"aborted": 1, "rejected": 1}
    assert (traffic.prompt_tokens, traffic.output_tokens, traffic.in_flight) == (30, 1, 1)
    assert counted(traffic.ttft) == {0.02: 1}
    assert counted(traffic.e2e) == counted(traffic.queue) == counted(traffic.decode) == {}
    assert traffic.output_lengths.sum == 0


def test_one_token_has_no_time_per_output_token() -> None:
    traffic = Traffic(1000, clock_ns=Clock())
    traffic.submitted([request("a", 30, 1)])
    traffic.told([token("a", "length", RequestMetrics(0, 1, 2, 2, 0, 0, 0))])
    traffic.settle()
    assert counted(traffic.tpot) == {}
    assert counted(traffic.e2e) == {0.001: 1}


def test_what_goes_down_with_the_engine_ends_with_an_error() -> None:
    ended: list[EndedRequest] = []
    traffic = Traffic(1000, ended.append, Clock())
    traffic.submitted([request("a", 30), request("b", 30)])
    traffic.gone("killed by signal 9", 2)
    assert traffic.in_flight == 0
    assert traffic.finished["error"] == 2
    assert [(each.finish_reason, each.detail, each.metrics) for each in ended] == [
        ("error", "killed by signal 9", None)
    ] * 2


def test_gaps_do_not_pile_up_when_nobody_looks() -> None:
    clock = Clock()
    traffic = Traffic(1000, clock_ns=clock)
    names = [str(number) for number in range(256)]
    traffic.submitted([request(name, 1) for name in names])
    for step in range(100):
        clock.now_ns += MS
        traffic.told([token(name) for name in names])
        assert len(traffic.itl.pending) < 8192 + 256, step
    assert traffic.output_tokens == 25600
    traffic.settle()
    assert counted(traffic.itl) == {0.001: 256 * 99}
