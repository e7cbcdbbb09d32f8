"""The process behind a server: it makes the engine, and serves what comes through its socket until that is closed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.embedded import EMBEDDED_NAME
from engine.errors import DeviceError, EngineError
from engine.loop import EngineLoop, TokenOutput, undisturbed
from engine.pretrained import pretrained_place
from engine.steps import Executor
from engine.tokenizer import Tokenizer
from reports.overhead import TimedScheduler
from scheduler.config import SchedulerConfig
from scheduler.errors import PolicyError
from scheduler.plan import StepOutcome, StepPlan
from scheduler.request import Request
from scheduler.sequence import Sequence
from serving.channel import Channel
from serving.messages import (
    MOST_LENGTHS,
    STEP_EDGES,
    Ask,
    Broken,
    Cancel,
    EngineInfo,
    EngineSettings,
    Leave,
    Outputs,
    Snapshot,
    Submit,
)


class Times:
    """An observer that adds up what steps take."""

    def __init__(self) -> None:
        self.steps = self.device_ns = self.busy_ns = 0
        #: by the tokens that they computed
        self.sizes = [0] * (len(STEP_EDGES) + 1)

    def stepped(self, plan: StepPlan, steps: int, outcome: StepOutcome) -> None:
        self.steps += steps
        self.sizes[bisect_left(STEP_EDGES, plan.features.new_tokens)] += steps
        self.device_ns += outcome.device_ns
        self.busy_ns += outcome.device_ns + outcome.host_ns

    def gaps(self, gap_ns: npt.NDArray[np.int64], weight: int) -> None:
        """Who waits for tokens sees the gaps."""

    def ended(self, sequence: Sequence) -> None:
        """The loop says so."""


class Parts(NamedTuple):
    """What an engine is made of, and what is to be known of it."""

    executor: Executor
    config: SchedulerConfig
    tokenizer: Tokenizer | None
    info: EngineInfo
    close: Callable[[], None]


class ServedEngine:
    """An engine's loop at the end of a channel."""

    def __init__(self, parts: Parts, channel: Channel) -> None:
        self._channel = channel
        self._close = parts.close
        self._times = Times()
        self._scheduler = TimedScheduler(parts.config, self._times)
        #: news that have not been sent
        self._news: list[TokenOutput] = []
        self._loop = EngineLoop(
            self._scheduler,
            parts.executor,
            tokenizer=parts.tokenizer,
            end_token_ids=parts.info.end_token_ids,
            listener=self._news.append,
        )

    def serve(self) -> None:
        """Until the other end leaves. Raises what the engine cannot go on with, when everybody has been told."""
        threading.Thread(target=self._listen, name="requests", daemon=True).start()
        try:
            with undisturbed():
                self._loop.serve(self._send_news)
            self._loop.abort_all()
        finally:
            with contextlib.suppress(OSError):
                self._send_news()
            self._close()

    def _send_news(self) -> None:
        if self._news:
            news = self._news[:]
            self._news.clear()
            try:
                self._channel.send(Outputs(news))
            except OSError:
                self._loop.stop()

    def _listen(self) -> None:
        try:
            while self._heed(self._channel.receive()):
                pass
        except (EOFError, DeviceError):  # the front has left, or the loop's thread ends too
            pass
        finally:
            self._loop.stop()

    def _heed(self, message: object) -> bool:
        """Do what a message asks for; ``False`` when it is to leave."""
        if isinstance(message, Submit):
            for request in message.requests:
                self._submit(request)
        elif isinstance(message, Cancel):
            for request_id in message.request_ids:
                self._loop.abort(request_id)
        elif isinstance(message, Ask):
            self._loop.call(partial(self._answer, message.number))
        return not isinstance(message, Leave)

    def _submit(self, request: Request) -> None:
        try:
            # the front knows nothing of this clock
            self._loop.submit(replace(request, arrival_ns=self._loop.now_ns()))
        except ValueError as error:
            refused = TokenOutput(request.id, None, "", "rejected", str(error))
            self._loop.call(partial(self._news.append, refused))

    def _answer(self, number: int) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(self._snapshot(number))

    def _snapshot(self, number: int) -> Snapshot:
        scheduler, times = self._scheduler, self._times
        lengths: list[int] = []
        waiting: list[int] = []
        now_ns = self._loop.now_ns()
        oldest_ns = now_ns
        for sequence in scheduler.sequences():
            if sequence.state == "waiting":
                oldest_ns = min(oldest_ns, sequence.arrival_ns)
                waiting.append(sequence.known)
            else:
                lengths.append(sequence.known)
        pool = scheduler.pool
        return Snapshot(
            number,
            now_ns,
            times.steps,
            scheduler.resident,
            scheduler.waiting,
            scheduler.kv_tokens,
            pool.capacity_blocks * pool.block_tokens,
            now_ns - oldest_ns,
            lengths[:MOST_LENGTHS],
            waiting[:MOST_LENGTHS],
            asdict(scheduler.counters),
            times.device_ns,
            times.busy_ns,
            scheduler.spent_ns,
            self._loop.errors,
            pool.reserved_tokens,
            times.sizes,
        )


def build(settings: EngineSettings) -> Parts:
    """Make the engine. Raises :class:`~engine.errors.EngineError` or ``ValueError`` (settings, costs), one line."""
    if settings.emulate is not None:
        from serving.emulation import emulated_parts

        return emulated_parts(settings)
    if settings.model not in (None, EMBEDDED_NAME):
        pretrained_place(settings.model)  # a mistake is said before torch is loaded, which takes seconds
    from engine.assembly import assemble

    model, config, executor, memory = assemble(
        settings.model,
        settings.scheduler,
        dtype=settings.dtype,
        device=settings.device,
        tp=settings.tp,
        gpu_memory_utilization=settings.gpu_memory_utilization,
    )
    tokenizer = model.tokenizer
    info = EngineInfo(
        model.name,
        None if tokenizer is None else tokenizer.source,
        model.vocab,
        config.context_tokens,
        model.eos_token_ids,
        config.as_dict(),
        str(model.device),
        memory=memory.as_dict(),
    )
    workers = None if model.group is None else model.group.workers
    return Parts(executor, config, tokenizer, info, (lambda: None) if workers is None else workers.close)


def main() -> None:
    """``python -m serving.engine_process FD``: the first message is the settings, the first answer the info."""
    # the front ends this process; Ctrl-C in the terminal is for it alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        settings: EngineSettings = channel.receive()
    except EOFError:
        return
    code = 0
    try:
        parts = build(settings)
        engine = ServedEngine(parts, channel)
        channel.send(parts.info)
        engine.serve()
    except Exception as error:
        code = 1
        known = isinstance(error, EngineError | PolicyError | ValueError | OSError)
        reason = " ".join(str(error).split())
        with contextlib.suppress(OSError):
            channel.send(Broken(reason if known and reason else f"{type(error).__name__}: {reason}"))
        if not known:
            sys.excepthook(type(error), error, error.__traceback__)
    with contextlib.suppress(OSError):  # a full disk
        sys.stderr.flush()
    os._exit(code)  # whatever thread of a library still runs


if __name__ == "__main__":
    main()
