"""The server on a Ray cluster of this machine: replicas follow the load, and nobody is lost silently."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy import ray_serve
from serving.arguments import parse_command

SCALING = """
max_replicas: 3
target_ongoing_requests: 4
metrics_interval_s: 0.5
look_back_period_s: 1
upscale_delay_s: 0
downscale_delay_s: 4
cold_start_s: 300
"""
PATIENCE_S = 180
RUNNING, TOKENS = "vllm:num_requests_running", "vllm:generation_tokens_total"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Running:
    """The application, and what Ray says of it."""

    url: str

    def replicas(self) -> Mapping[str, int]:
        """How many there are, by state."""
        from ray import serve

        states = serve.status().applications[ray_serve.NAME].deployments["engines"].replica_states
        return {str(state): count for state, count in states.items()}

    def ask(self, method: str) -> list[Any]:
        """What each replica answers."""
        from ray import serve

        handle = serve.get_deployment_handle("engines", ray_serve.NAME)
        return list(handle.broadcast(method).results(timeout_s=PATIENCE_S))

    def has(self, replicas: int) -> bool:
        """Whether so many run, and no other is there."""
        return self.replicas() == {"RUNNING": replicas}

    def runs(self, replicas: int) -> bool:
        """Whether so many run."""
        return self.replicas().get("RUNNING", 0) == replicas


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.1)


def application(folder: Path, scaling: str, *flags: str) -> Any:
    """What the flags ask for, with these settings of the autoscaler."""
    path = folder / "autoscale.yaml"
    path.write_text(scaling, encoding="utf-8")
    return ray_serve.app_of(["--autoscale", str(path), "--replica-cpus", "0.1", *flags], {})


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    pytest.importorskip("ray")
    if "ray" not in request.config.getoption("-m"):
        pytest.skip("takes minutes, and all cores: make test-ray")
    emulated = ["--emulate", "h100-qwen-7b", "--router", "prefix-affinity", "--prefix-cache"]
    port = free_port()
    ray_serve.start(application(tmp_path_factory.mktemp("ray"), SCALING, *emulated), "127.0.0.1", port, cpus=4)
    try:
        yield Running(f"http://127.0.0.1:{port}")
    finally:
        ray_serve.stop()


@dataclass
class Asked:
    """A completion, and what became of it: ``told`` is an error that its client has heard."""

    url: str
    tokens: int
    stream: bool = False
    prompt: str = "Count the stars"
    heard: threading.Event = field(default_factory=threading.Event)
    outcome: str = ""

    def run(self) -> None:
        try:
            self.outcome = self._run()
        except httpx.HTTPError as error:
            self.outcome = f"broken: {error!r}"

    def _run(self) -> str:
        body = {"prompt": self.prompt, "max_tokens": self.tokens, "stream": self.stream, "ignore_eos": True}
        if self.stream:
            body["stream_options"] = {"include_usage": True}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=PATIENCE_S) as response:
            if not self.stream or response.status_code != 200:
                answer = json.loads(response.read())
                return self._whole(answer) if response.status_code == 200 else f"refused: {answer['error']['code']}"
            outcome = ""
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    return outcome or "silent"
                if data:
                    self.heard.set()
                    event = json.loads(data)
                    if "error" in event:
                        outcome = f"told: {event['error']['code']}"
                    elif event.get("usage"):
                        outcome = self._whole(event)
            return "silent"

    def _whole(self, answer: dict[str, Any]) -> str:
        return "whole" if answer["usage"]["completion_tokens"] == self.tokens else "short"


class Load:
    """Clients, each of which asks again as soon as it has its answer."""

    def __init__(self, url: str, clients: int, tokens: int) -> None:
        self._stopping = threading.Event()
        self.outcomes: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(url, tokens, i < 2)) for i in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, url: str, tokens: int, stream: bool) -> None:
        while not self._stopping.is_set():
            asked = Asked(url, tokens, stream)
            asked.run()
            self.outcomes.append(asked.outcome)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def start(*every: Asked) -> list[threading.Thread]:
    threads = [threading.Thread(target=asked.run) for asked in every]
    for thread in threads:
        thread.start()
    return threads


def scraped(url: str, name: str) -> dict[str, float]:
    """A metric as Prometheus gets it through the front: the sum of its samples, by replica."""
    answer = httpx.get(f"{url}/metrics", timeout=PATIENCE_S)
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/plain")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels["replica"]] = found.get(sample.labels["replica"], 0) + sample.value
    return found


@pytest.mark.ray
def test_replicas_follow_the_load_and_prompts_their_beginnings(cluster: Running) -> None:
    assert cluster.has(1)
    load = Load(cluster.url, clients=20, tokens=500)
    try:
        until(lambda: cluster.runs(3))
        until(lambda: len([running for running in scraped(cluster.url, RUNNING).values() if running]) == 3)
        same = [Asked(cluster.url, 5, prompt="one beginning of many words " * 40) for _ in range(4)]
        for asked in same:
            asked.run()
        hits = sorted(state["counters"]["prefix_hit_tokens"] for state in cluster.ask("state"))
    finally:
        load.stop()
    assert set(load.outcomes) == {"whole"}
    assert [asked.outcome for asked in same] == ["whole"] * 4
    # 40 x 5 tokens, the last three times from the cache of one replica
    assert hits[:2] == [0, 0]
    assert 3 * 180 <= hits[2] <= 3 * 220
    until(lambda: cluster.has(1))


@pytest.mark.ray
def test_metrics_come_through_the_front_while_requests_run(cluster: Running) -> None:
    until(lambda: cluster.has(1))
    ((replica, before),) = scraped(cluster.url, TOKENS).items()
    streams = [Asked(cluster.url, 2_000, stream=True) for _ in range(2)]
    threads = start(*streams)
    for asked in streams:
        assert asked.heard.wait(PATIENCE_S)
    seen = [before]
    while any(thread.is_alive() for thread in threads):
        ((same, tokens),) = scraped(cluster.url, TOKENS).items()
        assert same == replica
        seen.append(tokens)
    assert [asked.outcome for asked in streams] == ["whole"] * 2
    assert seen == sorted(seen)
    assert len(set(seen)) > 2  # also on the way
    assert scraped(cluster.url, TOKENS) == {replica: before + 4_000}


@pytest.mark.ray
@pytest.mark.parametrize(("process", "code"), [("engine", "engine_dead"), ("replica", "replica_lost")])
def test_a_killed_replica_loses_nobody_silently(cluster: Running, process: str, code: str) -> None:
    until(lambda: cluster.has(1))
    (before,) = cluster.ask("state")
    streams = [Asked(cluster.url, 4_000, stream=True) for _ in range(2)]
    others = [Asked(cluster.url, 1_000) for _ in range(2)]
    threads = start(*streams, *others)
    for asked in streams:
        assert asked.heard.wait(PATIENCE_S)
    os.kill(before[process], signal.SIGKILL)
    for thread in threads:
        thread.join()
    # who has heard something is told; for the others there is another replica
    assert [asked.outcome for asked in streams] == [f"told: {code}"] * 2
    assert [asked.outcome for asked in others] == ["whole"] * 2
    (after,) = cluster.ask("state")
    assert after["engine"] != before["engine"]
    until(lambda: not alive(before["engine"]))


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"


@pytest.mark.ray
def test_who_leaves_is_not_worked_for(cluster: Running) -> None:
    until(lambda: cluster.runs(1))
    body = {"prompt": "Count the stars", "max_tokens": 4_000, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{cluster.url}/v1/completions", json=body, timeout=PATIENCE_S) as response:
        assert response.status_code == 200, response.read()
        pieces = response.iter_bytes()
        next(pieces)
        (busy,) = cluster.ask("record_autoscaling_stats")
        assert busy["ongoing"] == 1
    until(lambda: [stats["ongoing"] for stats in cluster.ask("record_autoscaling_stats")] == [0])


@pytest.mark.ray
def test_errors_and_limits_are_those_of_a_server(cluster: Running) -> None:
    assert httpx.get(f"{cluster.url}/ready").json() == {"status": "ready"}
    assert httpx.get(f"{cluster.url}/nothing").status_code == 404
    wrong = httpx.post(f"{cluster.url}/v1/completions", json={"prompt": "a", "max_tokens": -1})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "max_tokens")
    pieces = (b" " * (1 << 20) for _ in range(9))
    headers = {"Content-Type": "application/json"}
    assert httpx.post(f"{cluster.url}/v1/completions", content=pieces, headers=headers).status_code == 413


@pytest.mark.ray
@pytest.mark.model
def test_replicas_of_the_embedded_model_follow_the_load(cluster: Running, tmp_path: Path) -> None:
    from ray import serve

    scaling = SCALING.replace("max_replicas: 3", "max_replicas: 2").replace("requests: 4", "requests: 1")
    serve.run(application(tmp_path, scaling, "--device", "cpu", "--router", "length-aware"), name=ray_serve.NAME)
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
    answer = httpx.post(f"{cluster.url}/v1/chat/completions", json=body, timeout=PATIENCE_S).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    load = Load(cluster.url, clients=4, tokens=50)
    try:
        until(lambda: cluster.runs(2))
    finally:
        load.stop()
    assert set(load.outcomes) == {"whole"}
    until(lambda: cluster.has(1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--router", "prefix-affinity"], "router prefix-affinity needs --prefix-cache"),
        (["--router", "central-queue"], "router central-queue is one of the simulator only"),
        (["--autoscale", "none.yaml"], "none.yaml"),
        (["--emulate", "h100-qwen-7b", "--device", "cpu"], "--device has no effect with --emulate"),
        (["--policy", "sjff"], "sjff"),
        (["--slo", "ttft=3"], "ttft"),
    ],
)
def test_mistakes_are_told_before_anything_is_started(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    assert ray_serve.main(flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("ray_serve.py: error: ")
    assert message in said


def test_a_gpu_is_reserved_for_each_part_of_a_model(tmp_path: Path) -> None:
    pytest.importorskip("ray")

    def gpus(*flags: str) -> float:
        parsed, rest = ray_serve.build_parser().parse_known_args(flags)
        return ray_serve.cluster_settings(parsed, parse_command(rest, {}).settings).gpus

    assert gpus() == gpus("--device", "cpu") == 0
    assert gpus("--device", "cuda", "--tp", "2") == 2
    assert gpus("--device", "cuda", "--replica-gpus", "0.5") == 0.5


def test_flags_come_by_name_from_a_file_of_ray_serve() -> None:
    pytest.importorskip("ray")
    application = ray_serve.app(
        {"emulate": "h100-qwen-7b", "prefix_cache": True, "router": "prefix-affinity", "max_running": 8}
    )
    assert type(application).__name__ == "Application"
