"""A server with an emulated engine, watched from outside: metrics, status, and the live page in a real browser."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from chromium import CHROMIUM, Tab
from prometheus_client.parser import text_string_to_metric_families as parse

from engine.loop import TokenOutput
from scheduler.request import Request, SamplingParams
from serving.engine_client import OutputStream
from serving.messages import EngineSettings
from serving.server import Server, ServerSettings, create_app

SETTINGS = ServerSettings(
    EngineSettings(
        emulate="h100-qwen2.5-0.5b",
        scheduler={"policy": "sjf-bucket", "bucket": 32, "max_running": 8, "kv_tokens": 65536},
    ),
    max_queue=8,
)


class Running:
    """A server in a thread of its own."""

    def __init__(self) -> None:
        app = create_app(SETTINGS)
        self._uvicorn = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._started.wait(300)
        self.server: Server = app.state.server
        port = self._uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        serving = asyncio.create_task(self._uvicorn.serve())
        while not self._uvicorn.started and not serving.done():
            await asyncio.sleep(0.01)
        self._started.set()
        await serving

    def close(self) -> None:
        self.client.close()
        self._uvicorn.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def ask(self, *requests: Request) -> Future[list[list[TokenOutput]]]:
        """Hand requests in; what became of each."""

        async def outputs() -> list[list[TokenOutput]]:
            streams = self.server.submit(requests)
            return [[output async for output in stream] for stream in streams]

        return asyncio.run_coroutine_threadsafe(outputs(), self.loop)

    @contextmanager
    def busy_with(self, *requests: Request) -> Iterator[list[OutputStream]]:
        """Requests that are in flight meanwhile, and are cancelled then."""

        async def submitted() -> list[OutputStream]:
            return self.server.submit(requests)

        async def cancelled() -> None:
            self.server.engine.cancel(streams)
            await self.server.engine.idle()

        streams = asyncio.run_coroutine_threadsafe(submitted(), self.loop).result(60)
        try:
            yield streams
        finally:
            asyncio.run_coroutine_threadsafe(cancelled(), self.loop).result(60)

    def metrics(self) -> dict[tuple[str, ...], float]:
        """By name and label values, without the model's and the engine's."""
        hidden = ("model_name", "engine")
        return {
            (sample.name, *(value for label, value in sample.labels.items() if label not in hidden)): sample.value
            for family in parse(self.client.get("/metrics").text)
            for sample in family.samples
        }

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/status").json()
        return found


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    found = Running()
    yield found
    found.close()


def request(name: str, tokens: int = 20, prompt: int = 30) -> Request:
    ids = tuple(range(10, 10 + prompt))
    return Request(name, 0, prompt, tokens, prompt_token_ids=ids, sampling=SamplingParams(ignore_eos=True))


def test_counts_are_those_of_the_requests(running: Running) -> None:
    before = running.metrics()
    outputs = running.ask(*[request(f"counted-{i}", tokens=10 + i) for i in range(5)]).result(60)
    after = running.metrics()

    def more(*key: str) -> float:
        return after[key] - before.get(key, 0)

    assert [len(each) for each in outputs] == [10, 11, 12, 13, 14]
    assert (more("vllm:generation_tokens_total"), more("vllm:prompt_tokens_total")) == (60, 150)
    assert more("vllm:request_success_total", "length") == 5
    assert more("lockstep:requests_submitted_total") == 5
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"):
        assert more(f"vllm:{name}_count") == 5
    assert more("vllm:inter_token_latency_seconds_count") == 55
    assert more("vllm:request_generation_tokens_sum") == 60
    # the first token of each comes with its prompt, the others with a row each
    assert more("lockstep:decode_rows_total") == 55
    assert more("lockstep:slots_useful_total", "prefill", "linear") == 150
    assert more("vllm:iteration_tokens_total_sum") == 150 + 55
    kinds = [more("lockstep:steps_total", kind) for kind in ("prefill", "decode", "mixed")]
    assert more("vllm:iteration_tokens_total_count") == sum(kinds) > 0


def test_counters_never_fall(running: Running) -> None:
    work = running.ask(*[request(f"rising-{i}", tokens=200) for i in range(8)])
    before: dict[tuple[str, ...], float] = {}
    for _ in range(6):
        now = running.metrics()
        counters = {
            key: value for key, value in now.items() if key[0].endswith(("_total", "_count", "_bucket", "_sum"))
        }
        assert {key: value for key, value in before.items() if value > counters[key]} == {}
        before = counters
    work.result(60)
    assert len(before) > 300


def test_requests_arrive_by_the_engines_clock(running: Running) -> None:
    now_ns = running.status()["state"]["up_s"] * 1e9
    ((*_, last),) = running.ask(request("late")).result(60)
    assert last.metrics is not None
    assert last.metrics.first_scheduled_ns is not None
    assert now_ns <= last.metrics.arrival_ns <= last.metrics.first_scheduled_ns


def test_the_status_is_of_the_present(running: Running) -> None:
    with running.busy_with(*[request(f"present-{i}", tokens=20000, prompt=20 + 40 * i) for i in range(10)]):
        while not ((status := running.status())["state"]["running"] == 8 and status["recent"]):
            assert status["in_flight"] == 10
        scraped = running.metrics()
    state = status["state"]
    assert (state["waiting"], status["in_flight"], status["up"]) == (2, 10, True)
    assert state["cohorts"]["bin_width"] % 32 == 0
    assert (sum(state["cohorts"]["running"]), sum(state["cohorts"]["waiting"])) == (8, 2)
    assert 0 < state["kv"]["held"] <= state["kv"]["allocated"] <= state["kv"]["capacity"] == 65536
    assert set(status["recent"]["padding_waste"]) == {
        "linear_prefill", "linear_decode", "attention_prefill", "attention_decode"
    }  # fmt: skip
    assert scraped["vllm:num_requests_running",] == 8
    assert sum(value for key, value in scraped.items() if key[0] == "lockstep:running_sequences") == 8


def test_refusals_are_counted(running: Running) -> None:
    with pytest.raises(Exception, match="in flight"):
        running.ask(*[request(f"many-{i}") for i in range(17)]).result(60)
    assert running.metrics()["lockstep:requests_refused_total", "queue_full"] == 17


def test_events_begin_with_the_past_and_go_on(running: Running) -> None:
    with running.client.stream("GET", "/status/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        names: list[str] = []
        frames: list[dict[str, Any]] = []
        for line in events.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            elif line.startswith("data: ") and names[-1] == "frame":
                frames.append(json.loads(line.removeprefix("data: ")))
            if len(frames) == 3:
                break
    assert names[:2] == ["history", "frame"]
    assert [frame["point"]["t"] for frame in frames] == sorted({frame["point"]["t"] for frame in frames})
    with running.client.stream("GET", "/status/events") as events:
        history = next(line for line in events.iter_lines() if line.startswith("data: "))
    assert len(json.loads(history.removeprefix("data: "))) >= 3


def test_nothing_is_taken_while_nobody_looks(running: Running) -> None:
    async def unwatched() -> None:
        while any(task.get_name() == "live frames" for task in asyncio.all_tasks()):
            await asyncio.sleep(0.05)

    with running.client.stream("GET", "/status/events") as events:
        next(line for line in events.iter_lines() if line.startswith("event: frame"))
    asyncio.run_coroutine_threadsafe(unwatched(), running.loop).result(60)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_live_page_in_a_browser(running: Running) -> None:
    with Tab() as tab, ExitStack() as stack:
        tab.look(1280, 900)
        tab.open(running.url + "/")
        tab.wait("location.pathname === '/' && document.getElementById('link').textContent === 'live'")
        stack.enter_context(running.busy_with(*[request(f"seen-{i}", 20000, 20 + 40 * i) for i in range(10)]))
        tab.wait("document.getElementById('running').textContent === '8 of 8'")
        tab.wait("document.getElementById('waiting').textContent.startsWith('2')")
        steps = "Number(document.getElementById('running-more').textContent.replace(/\\D/g, ''))"
        first = tab.value(steps)
        tab.wait(f"{steps} > {first}")
        assert tab.value("document.getElementById('model').textContent") == "h100-qwen2.5-0.5b"
        assert "running sequences" in tab.value("document.getElementById('cohorts-says').textContent")
        # something is drawn on every chart, and each says what it shows
        for chart in ("lengths", "heat", "queue", "rate", "kv", "itl"):
            canvas = f"document.getElementById('c-{chart}')"
            tab.wait(
                f"new Set(new Uint32Array({canvas}.getContext('2d')"
                f".getImageData(0, 0, {canvas}.width, {canvas}.height).data.buffer)).size > 3"
            )
            assert len(tab.value(f"{canvas}.getAttribute('aria-label')")) > 20
        # keys read a chart's values, in its tip and to screen readers
        tab.value("document.getElementById('c-queue').focus()")
        for kind in ("keyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind, key="ArrowLeft", code="ArrowLeft", windowsVirtualKeyCode=37)
        assert "running 8" in tab.value("document.getElementById('spoken').textContent")
        # tables instead of charts
        tab.value("document.querySelectorAll('details').forEach(each => each.open = true)")
        tab.wait("[...document.querySelectorAll('details tbody')].every(body => body.rows.length > 0)")
        # widths and colours
        for width in (360, 768, 1280):
            for dark in (False, True):
                tab.look(width, 900, dark=dark)
                tab.wait(f"innerWidth === {width} && document.documentElement.scrollWidth <= {width}")
        ground = tab.value("getComputedStyle(document.body).backgroundColor")
        tab.look(1280, 900)
        assert tab.value("getComputedStyle(document.body).backgroundColor") != ground
        # a stream that drops is said to have, and comes back
        tab.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        tab.value("source.close(); connect()")
        tab.wait("document.getElementById('link').textContent.startsWith('reconnecting')")
        problems = [problem for problem in tab.problems if "ERR_INTERNET_DISCONNECTED" not in problem]
        tab.call(
            "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        tab.wait("document.getElementById('link').textContent === 'live'")
        assert problems == []
        # what a page has in itself is no request to anybody
        assert {address for address in tab.requests if not address.startswith("data:")} == {
            running.url + "/", running.url + "/status/events"
        }  # fmt: skip


def test_a_server_whose_engine_was_killed_says_so(running: Running) -> None:
    """The last test: there is no engine after it."""
    lost = running.ask(request("lost", tokens=20000))
    while running.status()["in_flight"] != 1:
        assert not lost.done()
    before = running.metrics()
    os.kill(running.server.engine.pid, signal.SIGKILL)
    with pytest.raises(Exception, match="signal 9"):
        lost.result(60)
    after = running.metrics()
    assert (before["lockstep:engine_up",], after["lockstep:engine_up",]) == (1, 0)
    assert after["vllm:request_success_total", "error"] == 1
    assert after["lockstep:requests_submitted_total",] == before["lockstep:requests_submitted_total",]
    assert ("vllm:num_requests_running",) not in after
    status = running.status()
    assert (status["up"], status["in_flight"]) == (False, 0)
    assert "signal 9" in status["failure"]
    with running.client.stream("GET", "/status/events") as events:
        frames = (line.removeprefix("data: {") for line in events.iter_lines() if line.startswith("data: {"))
        assert json.loads("{" + next(frames))["failure"] == status["failure"]
