"""Log lines: one JSON object each, or one line of text; among them one for each request that is over."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from engine.loop import TokenOutput
from scheduler.request import Request
from serving.exchanges import EndedRequest, Exchange

FORMATS = ("text", "json")
_REQUESTS = logging.getLogger("lockstep.requests")
_SERVER = logging.getLogger("lockstep.server")


def logging_config(log_format: str = "text", level: str = "info") -> dict[str, Any]:
    """For ``logging.config.dictConfig``, and for uvicorn's ``log_config``: everything goes to standard error.

    uvicorn's access lines are off: the line of each request says more. Raises ``ValueError``.
    """
    if log_format not in FORMATS:
        raise ValueError(f"log format is {log_format!r}; must be one of: {', '.join(FORMATS)}")
    levels = ("debug", "info", "warning", "error")
    if level not in levels:
        raise ValueError(f"log level is {level!r}; must be one of: {', '.join(levels)}")
    formatter = JsonLines if log_format == "json" else TextLines
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": formatter}},
        "handlers": {"stderr": {"()": StandardError, "formatter": "lines"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "lockstep": {"level": level.upper()},
            "uvicorn": {"level": level.upper()},
            "uvicorn.access": {"level": "WARNING"},
        },
    }


class StandardError(logging.StreamHandler[TextIO]):
    """Writes lines to standard error, or counts them where it takes none (a full disk): the server goes on.

    When it takes lines again, one says how many it did not take.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        #: lines that could not be written
        self.lost = 0
        self._untold = 0
        self._problem = ""

    def emit(self, record: logging.LogRecord) -> None:
        untold = self._untold
        super().emit(record)
        if untold and untold == self._untold:
            self._untold = 0
            args = (untold, self._problem)
            super().emit(logging.LogRecord(_SERVER.name, logging.WARNING, __file__, 0, _LOST, args, None))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self.lost += 1
        self._untold += 1
        self._problem = error.strerror or str(error)


_LOST = "%d lines of this log could not be written: %s"


def lost_lines() -> int:
    """Lines that the log of this process could not take."""
    return sum(handler.lost for handler in logging.getLogger().handlers if isinstance(handler, StandardError))


def say(line: str) -> None:
    """A line on standard error that is no log line; where it cannot be written the exit code has to do."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class JsonLines(logging.Formatter):
    """``time`` (UTC), ``level``, ``logger``, ``message``, what the line's ``fields`` are, and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextLines(logging.Formatter):
    """Time (UTC), level and message, and the request's id."""

    def format(self, record: logging.LogRecord) -> str:
        request_id = getattr(record, "fields", {}).get("request_id")
        name = "" if request_id is None else f" [{request_id}]"
        line = f"{_time(record)} {record.levelname:<7} {record.getMessage()}{name}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def log_event(message: str, **fields: Any) -> None:
    """A line about the server itself."""
    _SERVER.info(message, extra={"fields": fields})


class EngineLines:
    """Writes a line when the engine is gone: an :class:`~serving.engine_client.EngineListener`.

    ``expected`` says whether that was to come.
    """

    def __init__(self, expected: Callable[[], bool]) -> None:
        self._expected = expected

    def submitted(self, requests: Sequence[Request]) -> None:
        """Each has a line when it has ended."""

    def told(self, outputs: Sequence[TokenOutput]) -> None:
        """Each request has a line when it has ended."""

    def gone(self, reason: str, lost: int) -> None:
        level = logging.INFO if self._expected() else logging.ERROR
        _SERVER.log(level, "the engine is gone: %s", reason, extra={"fields": {"lost_requests": lost}})


class RequestLines:
    """Writes the line of each HTTP request when it is over, here and in the engine.

    Those that gave the engine nothing to do and went well (probes, scrapes) are of level ``debug``. Lines have neither
    prompts nor outputs, unless there are :class:`Texts` to take them from.
    """

    def __init__(self, model: str, texts: Texts | None = None) -> None:
        self._model = model
        self._texts = texts

    def __call__(self, exchange: Exchange) -> None:
        texts = None if self._texts is None else [self._texts.take(request) for request in exchange.ended]
        level = logging.INFO if exchange.ended or exchange.status >= 400 else logging.DEBUG
        if not _REQUESTS.isEnabledFor(level):
            return
        fields = self._fields(exchange)
        if texts:
            fields["texts"] = texts
        message = f"{exchange.method} {exchange.path} {exchange.status} in {fields['duration_ms'] / 1000:.3f} s"
        if exchange.ended:
            message += f", {fields['prompt_tokens']} + {fields['output_tokens']} tokens, {fields['finish_reason']}"
        _REQUESTS.log(level, message, extra={"fields": fields})

    def _fields(self, exchange: Exchange) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "request_id": exchange.id,
            "method": exchange.method,
            "endpoint": exchange.route,
            "status": exchange.status,
            "duration_ms": round(exchange.duration_ns / 1e6, 3),
        }
        ended = exchange.ended
        if not ended:
            return fields
        first_ns = [request.first_token_ns for request in ended if request.first_token_ns is not None]
        metrics = [request.metrics for request in ended if request.metrics is not None]
        scheduled_ns = [m.first_scheduled_ns - m.arrival_ns for m in metrics if m.first_scheduled_ns is not None]
        submitted_ns = ended[0].submitted_ns
        fields |= {
            "model": self._model,
            "sequences": len(ended),
            "prompt_tokens": sum(request.request.prompt_tokens for request in ended),
            "output_tokens": sum(request.output_tokens for request in ended),
            "finish_reason": ",".join(sorted({request.finish_reason for request in ended})),
            "queue_ms": round(max(scheduled_ns) / 1e6, 3) if scheduled_ns else None,
            "ttft_ms": round((min(first_ns) - submitted_ns) / 1e6, 3) if first_ns else None,
            "e2e_ms": round((max(request.ended_ns for request in ended) - submitted_ns) / 1e6, 3),
            "preemptions": sum(m.preemptions for m in metrics),
            "prefix_hit_tokens": sum(m.prefix_hit_tokens for m in metrics),
        }
        details = [request.detail for request in ended if request.detail]
        if details:
            fields["detail"] = details[0]
        return fields


class Texts:
    """Prompts and outputs, for lines that have them: an :class:`~serving.engine_client.EngineListener`.

    ``decode`` gives the text of token ids.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._pieces: dict[str, list[str]] = {}

    @property
    def kept(self) -> int:
        """How many requests there are texts of."""
        return len(self._pieces)

    def submitted(self, requests: Sequence[Request]) -> None:
        self._pieces.update({request.id: [] for request in requests})

    def told(self, outputs: Sequence[TokenOutput]) -> None:
        for output in outputs:
            if output.request_id in self._pieces:
                self._pieces[output.request_id].append(output.text)

    def gone(self, reason: str, lost: int) -> None:
        """What there is of the texts has been told."""

    def take(self, ended: EndedRequest) -> dict[str, str]:
        """The texts of a request that has ended, which are forgotten with that."""
        request = ended.request
        return {
            "prompt": self._decode(request.prompt_token_ids or ()),
            "output": "".join(self._pieces.pop(request.id, ())),
        }
