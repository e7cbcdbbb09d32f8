"""Log lines: one JSON object each, without prompts and outputs unless they are asked for."""

from __future__ import annotations

import io
import json
import logging
import logging.config
from collections.abc import Iterator
from typing import Any

import pytest

from engine.loop import RequestMetrics, TokenOutput
from scheduler.request import Request
from serving.exchanges import CURRENT, Exchange, Exchanges
from serving.logs import EngineLines, RequestLines, Texts, log_event, logging_config
from serving.traffic import Traffic

MS = 1_000_000


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """Where log lines go, in the format and of the level of the test's parameter."""
    log_format, level = getattr(request, "param", ("json", "info"))
    config = logging_config(log_format, level)
    stream = io.StringIO()
    config["handlers"]["stderr"]["stream"] = stream
    names = (*config["loggers"], "uvicorn.error", "")
    before = {name: logging.getLogger(name) for name in names}
    kept = {name: (logger.level, logger.handlers[:]) for name, logger in before.items()}
    logging.config.dictConfig(config)
    yield stream
    for name, (old_level, handlers) in kept.items():
        before[name].setLevel(old_level)
        before[name].handlers[:] = handlers


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class Front:
    """An HTTP request that hands two to the engine, whose news are made by hand."""

    def __init__(self, texts: Texts | None = None) -> None:
        self.now_ns = 0
        self.exchanges = Exchanges()
        self.exchanges.listeners.append(RequestLines("shown", texts))
        self.traffic = Traffic(1000, self.exchanges.ended, lambda: self.now_ns)
        self.listeners = [*([] if texts is None else [texts]), self.traffic]

    def play(self, status: int = 200) -> None:
        exchange = Exchange("job-17", "POST", "/v1/completions", [], 0)
        token = CURRENT.set(exchange)
        for listener in self.listeners:
            listener.submitted([
                Request("a", 0, 2, 9, prompt_token_ids=(5, 6)), Request("b", 0, 3, 9, prompt_token_ids=(7, 8, 9))
            ])  # fmt: skip
        CURRENT.reset(token)
        metrics = RequestMetrics(10 * MS, 14 * MS, 25 * MS, 60 * MS, 1, 16, 0)
        for at_ms, outputs in (
            (20, [TokenOutput("a", 1, "se"), TokenOutput("b", 1, "no")]),
            (50, [TokenOutput("a", 1, "cret", "length", metrics=metrics)]),
            (90, [TokenOutput("b", None, "", "aborted", metrics=metrics)]),
        ):
            self.now_ns = at_ms * MS
            for listener in self.listeners:
                listener.told(outputs)
        self.exchanges.over(exchange, {}, status)


def test_the_line_of_a_request_says_what_became_of_it(lines: io.StringIO) -> None:
    Front().play()
    (line,) = json_lines(lines)
    assert line.pop("time").endswith("Z")
    assert line.pop("duration_ms") > 0
    assert line.pop("message").startswith("POST /v1/completions 200 in ")
    assert line == {
        "level": "info",
        "logger": "lockstep.requests",
        "request_id": "job-17",
        "method": "POST",
        "endpoint": "unknown",
        "status": 200,
        "model": "shown",
        "sequences": 2,
        "prompt_tokens": 5,
        "output_tokens": 3,
        "finish_reason": "aborted,length",
        "queue_ms": 4.0,
        "ttft_ms": 20.0,
        "e2e_ms": 90.0,
        "preemptions": 2,
        "prefix_hit_tokens": 32,
    }


def test_texts_are_in_lines_only_when_they_are_asked_for(lines: io.StringIO) -> None:
    Front().play()
    assert "secret" not in lines.getvalue()
    texts = Texts(lambda token_ids: " ".join(map(str, token_ids)))
    Front(texts).play()
    assert json_lines(lines)[1]["texts"] == [{"prompt": "5 6", "output": "secret"}, {"prompt": "7 8 9", "output": "no"}]
    assert texts.kept == 0


def test_probes_have_no_line_unless_they_fail(lines: io.StringIO) -> None:
    exchanges = Exchanges()
    exchanges.listeners.append(RequestLines("shown"))
    exchanges.over(Exchange("p1", "GET", "/health", [], 0), {}, 200)
    exchanges.over(Exchange("p2", "GET", "/health", [], 0), {}, 503)
    assert [line["request_id"] for line in json_lines(lines)] == ["p2"]


@pytest.mark.parametrize("lines", [("json", "debug")], indirect=True)
def test_a_lower_level_has_them_all(lines: io.StringIO) -> None:
    exchanges = Exchanges()
    exchanges.listeners.append(RequestLines("shown"))
    exchanges.over(Exchange("p1", "GET", "/health", [], 0), {}, 200)
    assert [line["level"] for line in json_lines(lines)] == ["debug"]


def test_other_loggers_write_json_too(lines: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)
    logging.getLogger("uvicorn.access").info("GET / 200")  # a request's own line says it
    log_event("the engine is ready", model="m", pid=3)
    try:
        raise ValueError("a\nb")
    except ValueError:
        logging.getLogger("somebody.else").exception("it broke")
    started, ready, broke = json_lines(lines)
    assert (started["logger"], started["message"]) == ("uvicorn.error", "Started server process [7]")
    assert (ready["message"], ready["model"], ready["pid"]) == ("the engine is ready", "m", 3)
    assert broke["exception"].endswith("ValueError: a\nb")


def test_an_engine_that_goes_is_an_error_unless_it_was_to(lines: io.StringIO) -> None:
    EngineLines(lambda: True).gone("the server is shutting down", 0)
    EngineLines(lambda: False).gone("killed by signal 9", 4)
    expected, not_expected = json_lines(lines)
    assert (expected["level"], not_expected["level"], not_expected["lost_requests"]) == ("info", "error", 4)


@pytest.mark.parametrize("lines", [("text", "info")], indirect=True)
def test_text_lines_are_for_people(lines: io.StringIO) -> None:
    Front().play()
    (line,) = lines.getvalue().splitlines()
    assert " INFO    POST /v1/completions 200 in " in line
    assert line.endswith(", 5 + 3 tokens, aborted,length [job-17]")


@pytest.mark.parametrize(("log_format", "level"), [("yaml", "info"), ("json", "loud")])
def test_what_is_possible_is_said(log_format: str, level: str) -> None:
    with pytest.raises(ValueError, match="must be one of: "):
        logging_config(log_format, level)
