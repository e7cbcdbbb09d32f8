"""How a server starts and ends, as a process: signals, the end of its engine, a port that is taken."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import RunningServer
from server_process import Stream, Whole, children, server

import api_server
from serving.arguments import parse_command
from serving.messages import EngineSettings
from serving.server import ServerSettings


def test_what_runs_is_finished_after_sigterm_nothing_new_is_taken_and_no_prompt_is_in_the_log() -> None:
    with server() as (process, url), httpx.Client(base_url=url, timeout=60) as client:
        streams = [Stream(url, 1000) for _ in range(4)]
        for stream in streams:
            assert stream.begun.wait(60)
        assert client.get("/ready").status_code == 200
        client.post("/generate", json={"prompt": "xylophone", "max_token": 3})
        chat = {"messages": [{"role": "user", "content": "xylophone"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=chat).status_code == 200
        for pid in (process.pid, *children(process.pid)):
            mapped = Path(f"/proc/{pid}/maps").read_text()
            assert "tokenizers" in mapped
            assert "torch" not in mapped  # no model is run
        process.send_signal(signal.SIGTERM)
        while (ready := client.get("/ready")).status_code == 200:
            pass
        assert (ready.status_code, ready.json()["status"]) == (503, "shutting down")
        assert client.get("/live").status_code == 200
        refused = client.post("/v1/completions", json={"prompt": "xylophone"})
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        for stream in streams:
            stream.join()
            assert '"output_tokens":1000' in stream.text
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "xylophone" not in process.stderr.read()


def test_what_is_not_done_in_time_is_told_so() -> None:
    with server("--drain-s", "0.3") as (process, url):
        stream = Stream(url, 20_000)
        assert stream.begun.wait(60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        stream.join()
    assert stream.text.endswith("data: [DONE]\n\n")
    assert "the server is shutting down" in stream.text


def test_a_second_signal_of_either_kind_waits_no_longer() -> None:
    with server("--drain-s", "3600") as (process, url), httpx.Client(base_url=url, timeout=60) as client:
        stream = Stream(url, 20_000)
        whole = Whole(url, 20_000)
        assert stream.begun.wait(60)
        while _in_flight(client) < 2:
            pass
        process.send_signal(signal.SIGINT)
        while client.get("/ready").status_code == 200:
            pass
        assert (_in_flight(client), process.poll()) == (2, None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        stream.join()
        whole.join()
    assert stream.text.endswith("data: [DONE]\n\n")
    assert '"code": "shutting_down"' in stream.text
    assert whole.answer is not None
    assert (whole.answer.status_code, whole.answer.json()["error"]["code"]) == (503, "shutting_down")


def test_a_second_signal_does_not_wait_for_who_reads_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.run.FLUSH_S", 3600)
    body = json.dumps({"prompt": "a", "max_tokens": 4000, "ignore_eos": True, "logprobs": 20, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    settings = ServerSettings(EngineSettings(emulate="roofline:h100:qwen2.5-0.5b"))
    with RunningServer(settings) as running, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", running.port))
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        while running.idle_snapshot().counters["finished"] < 1:
            pass
        for _ in range(600):
            running.tell_to_stop()
            if running.ended(0.1):
                break
        assert running.code == 0


def _in_flight(client: httpx.Client) -> int:
    return int(client.get("/status").json()["in_flight"])


def test_everybody_hears_that_the_engine_was_killed_and_the_process_ends() -> None:
    with server() as (process, url), httpx.Client(base_url=url, timeout=60) as client:
        streams = [Stream(url, 20_000) for _ in range(8)]
        for stream in streams:
            assert stream.begun.wait(60)
        (engine,) = (int(pid) for pid in children(process.pid))
        os.kill(engine, signal.SIGKILL)
        for stream in streams:
            stream.join()
            assert '"code": "engine_dead"' in stream.text
            assert "killed by signal 9" in stream.text
            assert stream.text.endswith("data: [DONE]\n\n")
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "dead")
        assert client.get("/ready").status_code == 503
        assert client.post("/generate", json={"prompt": "a"}).json()["error"]["code"] == "engine_dead"
        assert process.wait(60) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--polcy", "fcfs"], "unknown argument '--polcy'; did you mean --policy?"),
        (["--policy", "sjff"], "sjff"),
        (["--port", "70000"], "70000 is out of range; must be <= 65535"),
        (["--max-queue", "-1"], "-1 is out of range; must be >= 0"),
        (["--bucket", "32", "--policy", "fcfs"], "bucket"),
        (["--tokenizer", "x"], "--tokenizer is for --emulate"),
        (["--emulate", "h100-qwen-7b", "--dtype", "float16"], "--dtype has no effect with --emulate"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml cannot be read"),
        (["--served-model-name", "a,,b"], "empty name"),
        (["--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid:8000"),
        (["--port", "0", "--model", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert api_server.main(flags) == 2
    line = capsys.readouterr().err
    assert line.startswith("api_server.py: error: ")
    assert message in line
    assert line.count("\n") == 1


def test_a_port_that_is_taken_is_said_before_an_engine_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert api_server.main(["--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_flags_become_settings(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("policy: srpt\nmax-num-seqs: 8\nserved-model-name: [a, b]\nport: 9\n")
    command = parse_command(
        ["--config", str(file), "--port", "10", "--api-key", "k1", "--api-key", "k2,k3", "--drain-s", "1"],
        {"LOCKSTEP_API_KEY": "k4"},
    )
    settings = command.settings
    assert (command.host, command.port) == ("127.0.0.1", 10)
    assert settings.served_names == ("a", "b")
    assert settings.api_keys == ("k1", "k2", "k3", "k4")
    assert settings.drain_s == 1
    assert settings.engine.scheduler["policy"] == "srpt"
    assert settings.engine.scheduler["max_running"] == 8
    assert settings.engine.scheduler["overlap"] is True
    assert "k1" not in repr(settings)


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ([], {"policy": "fcfs", "max_running": 256, "min_rows": None, "overlap": True}),
        (["--max-rows", "64"], {"policy": "fcfs", "max_rows": 64}),
        (["--policy", "sjf-bucket"], {"policy": "sjf-bucket", "min_rows": None}),
        (["--policy", "orca", "--no-overlap"], {"policy": "srpt", "overlap": False}),
    ],
)
def test_what_is_scheduled_by_where_little_is_said(flags: list[str], settings: dict[str, Any]) -> None:
    scheduler = parse_command(flags, {}).settings.engine.scheduler
    assert {name: scheduler.get(name) for name in settings} == settings
