"""The short endpoints, by the commands that their users know."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
from running_server import RunningServer

COMMANDS = r"""
curl "http://localhost:8000/health"

curl -X POST "http://localhost:8000/generate" \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "Hello, my name is",
    "max_tokens": 100,
    "temperature": 0.7
  }'

curl -X POST "http://localhost:8000/generate_stream" \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "写一个java版本的文件上传代码",
    "max_tokens": 500,
    "temperature": 0.7,
    "stream": true
  }'

curl -X POST "http://localhost:8000/generate_stream" \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "写一个springboot+vue版本的文件上传代码",
    "max_tokens": 500,
    "temperature": 0.7,
    "stream": true
  }'

curl -X POST "http://localhost:8000/generate_stream" \
  -H "Content-Type: application/json" \
  -d '{
    "prompt": "请介一下北京,上海，并且介绍一下两个地方的优势、区别",
    "max_tokens": 500,
    "temperature": 0.7,
    "stream": true
  }'

curl -X POST "http://localhost:8000/batch_generate" \
  -H "Content-Type: application/json" \
  -d '{
    "prompts": [
      "写一首诗",
      "写一段java版本的文件上传代码"
    ],
    "max_tokens": 500
  }'
""".strip().split("\n\n")


def curl(server: RunningServer, command: str, *options: str) -> str:
    here = command.replace("localhost:8000", f"127.0.0.1:{server.port}")
    line = " ".join([here, "-sS", "--fail-with-body", *options])
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.decode()


def events(text: str) -> list[Any]:
    """The data of server-sent events, each a line between empty ones."""
    assert text.endswith("\n\n")
    return [json.loads(data) if (data := line.removeprefix("data: ")) != "[DONE]" else data
            for line in text.strip().split("\n\n")]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.findall(r"8000/(\w+)", command)[0])
def test_the_commands_work_as_printed(emulated: RunningServer, command: str) -> None:
    text = curl(emulated, command, "-N")
    if "health" in command:
        assert json.loads(text) == {"status": "ok", "model": "emulated"}
    elif "stream" in command:
        *pieces, last, done = events(text)
        assert done == "[DONE]"
        assert all(set(piece) == {"text"} and piece["text"] for piece in pieces)
        assert last["finish_reason"] == ("length" if last["output_tokens"] == 500 else "stop")
        assert last["prompt_tokens"] > 5
    else:
        results = json.loads(text).get("results") or [json.loads(text)]
        for result in results:
            assert set(result) == {"text", "finish_reason", "prompt_tokens", "output_tokens"}
            assert result["text"]
        assert len(results) == (2 if "batch" in command else 1)


@pytest.mark.model
def test_what_a_model_says_is_the_same_in_a_stream_as_a_whole_and_in_a_batch(model: RunningServer) -> None:
    prompt = "The capital of France is"
    with model.client() as client:
        whole = client.post("/generate", json={"prompt": prompt, "max_tokens": 12}).json()
        batch = client.post("/batch_generate", json={"prompts": ["One, two,", prompt], "max_tokens": 12}).json()
        stream = events(client.post("/generate_stream", json={"prompt": prompt, "max_tokens": 12}).text)
    assert "Paris" in whole["text"]
    assert batch["results"][1] == whole
    assert "".join(event["text"] for event in stream[:-1]) == whole["text"]
    assert stream[-2]["output_tokens"] == whole["output_tokens"] == 12


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/generate", {"prompt": "a", "stream": True}, "/generate_stream"),
        ("/generate_stream", {"prompt": "a", "stream": False}, "/generate"),
        ("/batch_generate", {"prompts": []}, "'prompts' must be a list"),
        ("/generate", {"prompt": "a", "max_token": 1}, "did you mean 'max_tokens'?"),
    ],
)
def test_what_is_not_meant_is_said(emulated: RunningServer, path: str, body: dict[str, Any], message: str) -> None:
    with emulated.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_an_output_is_cut_where_the_context_ends(emulated: RunningServer) -> None:
    with emulated.client() as client:
        body = {"prompt": [5] * 8190, "max_tokens": 500, "ignore_eos": True}
        assert client.post("/generate", json=body).json()["output_tokens"] == 2
        answer = client.post("/generate", json={"prompt": [5] * 8192})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
