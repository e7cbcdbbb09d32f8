"""The processes of the ranks beside rank 0, as rank 0 sees them: started, told what to do, watched, and ended.

Each has a pipe and a thread here that reads it. When a process ends too early, its thread hears of it at once, whatever
rank 0 is doing: from then on everything that is asked of the workers raises, and the group is given up, so that nothing
on this rank's device waits for one that is gone.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import struct
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from engine.errors import RankError
from engine.parallel.group import STALL_S
from engine.parallel.messages import Begin, Done, Failed, FreeMemory
from engine.processes import start_module

if TYPE_CHECKING:
    from engine.fused.device import DeviceSettings, FusedDevice, StepInputs
    from engine.parallel.group import TensorGroup
    from engine.sampling import Sampled

#: how long ends are waited for before they are forced
PATIENCE_S = 10.0

Built = TypeVar("Built")


class _Worker:
    """One process, its pipe, and what it has answered. ``None`` among the answers: there will be no more."""

    def __init__(self, begin: Begin) -> None:
        self.rank = begin.division.rank
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.connection, theirs = Pipe()
        try:
            self.process = start_module("engine.parallel.worker", theirs.fileno())
        finally:
            theirs.close()
        with self._socket() as end:
            # a process that reads nothing any more is not waited for without end
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(STALL_S), 0))
        self.connection.send(begin)

    def shut(self) -> None:
        """Say that no more will come. What the process still says is heard."""
        with self._socket() as end:
            end.shutdown(socket.SHUT_WR)

    def _socket(self) -> socket.socket:
        """What the pipe is made of."""
        return socket.socket(fileno=os.dup(self.connection.fileno()))


class _Watch:
    """What the threads that read the pipes know. Not the owner of them, so that they do not keep it alive."""

    def __init__(self) -> None:
        self.failure: str | None = None
        self.traceback = ""
        self.closing = False
        self.failed = threading.Event()
        self.workers: list[_Worker] = []
        #: gives the group up
        self.abort: Callable[[], None] | None = None
        #: what runs this rank's part; its graphs have to go before the group's communicator can
        self.device: weakref.ref[FusedDevice] | None = None
        self._giving_up: threading.Thread | None = None
        self._lock = threading.Lock()

    def fail(self, reason: str, details: str = "") -> None:
        """From now on the ranks are of no use. Only the first reason counts."""
        with self._lock:
            if self.closing or self.failure is not None:
                return
            self.failure, self.traceback = reason, details
        self.failed.set()
        self.abandon()
        for worker in self.workers:
            worker.process.kill()

    def abandon(self) -> threading.Thread | None:
        """Give the group up, once, in a thread, since that may have to wait for somebody to let go of graphs.

        An interpreter must not end before the thread has: it would be cut off in the middle of the library's code,
        which ends the process with an error.
        """
        with self._lock:  # two threads may see the end: whoever waits for the thread must find it started
            abort, self.abort = self.abort, None
            if abort is not None:
                self._giving_up = threading.Thread(target=abort, name="group's end", daemon=True)
                self._giving_up.start()
            return self._giving_up

    def check(self) -> None:
        """Raise :class:`RankError` if any rank has failed, or all have been ended."""
        if self.closing:
            raise RankError("the ranks of this model have been ended")
        if self.failure is not None:
            error = RankError(self.failure)
            if self.traceback:
                error.add_note(self.traceback)
            raise error


def _listen(worker: _Worker, watch: _Watch) -> None:
    """Read what a process says, to its end."""
    failed: Failed | None = None
    try:
        while True:
            answer = worker.connection.recv()
            if isinstance(answer, Failed):
                failed = answer
            else:
                worker.answers.put(answer)
    except (EOFError, OSError):
        pass
    worker.connection.close()
    code = worker.process.wait()
    name = f"rank {worker.rank} (process {worker.process.pid})"
    if failed is not None:
        watch.fail(f"{name} failed: {failed.reason}", failed.traceback)
    else:
        watch.fail(f"{name} ended unexpectedly, {_how(code)}")
    worker.answers.put(None)


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


class Workers:
    """The ranks from 1 on. For one thread at a time.

    All methods but :meth:`close` raise :class:`RankError` when a rank has failed. The processes end with this object,
    with :meth:`close`, or with the interpreter, whichever is first.
    """

    def __init__(self, begins: Sequence[Begin]) -> None:
        self._watch = _Watch()
        self._workers = self._watch.workers
        self._finalizer = weakref.finalize(self, _end, self._watch)
        for begin in begins:
            worker = _Worker(begin)
            self._workers.append(worker)
            threading.Thread(
                target=_listen, args=(worker, self._watch), name=f"rank {worker.rank}", daemon=True
            ).start()  # fmt: skip

    @property
    def pids(self) -> list[int]:
        """Process ids, by rank."""
        return [worker.process.pid for worker in self._workers]

    def joined(self, group: TensorGroup) -> None:
        """Rank 0 has made ``group``, which is to be given up when a rank fails."""
        self._watch.abort = group.aborter()

    def send(self, message: object) -> None:
        """Tell all of them."""
        self._watch.check()
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        for worker in self._workers:
            try:
                worker.connection.send_bytes(data)
            except OSError as error:
                raise self._broken(error) from error

    def answers(self) -> list[int]:
        """The number that each of them has for the oldest question that has not been answered."""
        numbers = []
        for worker in self._workers:
            answer = worker.answers.get()
            self._watch.check()
            if not isinstance(answer, Done):
                raise RankError(f"rank {worker.rank} has been ended")
            numbers.append(answer.number)
        return numbers

    def together(self, message: object, work: Callable[[], Built]) -> Built:
        """Tell all of them ``message``, do rank 0's part of it meanwhile, and wait for their answers."""
        self.send(message)
        try:
            done = work()
        except Exception as error:
            raise self._broken(error) from error
        self.answers()
        return done

    def build(self, work: Callable[[], FusedDevice], settings: DeviceSettings) -> FusedDevice:
        """What runs steps, in every rank; ``work`` makes rank 0's."""
        device = self.together(settings, work)
        self._watch.device = weakref.ref(device)
        return device

    def run(self, device: FusedDevice, inputs: StepInputs) -> Sampled | None:
        """Start a step in every rank, the last one in this: see :meth:`FusedDevice.run`.

        If it fails here, the others wait in vain for this rank's part: they all fail with it.
        """
        if self._watch.device is None or self._watch.device() is not device:
            raise RankError("the other ranks belong to another executor of this model, which was made later")
        self.send(inputs)
        try:
            return device.run(inputs)
        except Exception as error:
            raise self._broken(error) from error

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait for this rank's device, as long as the others are there."""
        until_s = time.monotonic() + STALL_S
        while not done():
            self._watch.check()
            if time.monotonic() > until_s:
                self._watch.fail(f"a step has not ended for {STALL_S:g} s: a rank does not answer")
        self._watch.check()

    def free_bytes(self) -> int:
        """The least memory that is free on any of their devices."""
        device = self._watch.device
        self.send(FreeMemory(drop=device is None or device() is None))
        return min(self.answers())

    def close(self) -> None:
        """End the processes. More than once does nothing."""
        self._finalizer()

    def _broken(self, error: Exception) -> RankError:
        """The reason why nothing goes on: another rank's if one has ended, else this one's ``error``."""
        # a rank's end may be seen here, by what it leaves open, before its thread has heard the reason
        if not isinstance(error, RankError) and not self._watch.failed.wait(_notice_s(error)):
            reason = " ".join(str(error).split())
            self._watch.fail(
                f"rank 0 failed: {type(error).__name__}: {reason}; the other ranks cannot go on without it"
            )
        try:
            self._watch.check()
        except RankError as failure:
            return failure
        raise AssertionError("a failure was recorded just now")


def _notice_s(error: Exception) -> float:
    """How long the end of another rank may be the reason of an error here."""
    return 2.0 if isinstance(error, RuntimeError | OSError) else 0.0


def _end(watch: _Watch) -> None:
    """End the processes: kindly, and after a while by force. Then let go of the group."""
    healthy = watch.failure is None
    watch.closing = True
    device = watch.device() if watch.device is not None else None
    if healthy and device is not None and device.device.type == "cuda":
        _settle(device.device)
    for worker in watch.workers:
        with suppress(OSError):  # its thread may have closed the pipe
            worker.shut()
    until_s = time.monotonic() + PATIENCE_S
    for worker in watch.workers:
        try:
            worker.process.wait(max(0.0, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
    thread = watch.abandon()
    if device is not None:
        device.close()
    if thread is not None:
        thread.join(PATIENCE_S)


def _settle(device: torch.device) -> None:
    """Wait a while for what has been launched on ``device``, which the other ranks have a part in."""
    make: Any = torch.cuda.Event
    event = make()
    event.record(torch.cuda.current_stream(device))
    until_s = time.monotonic() + PATIENCE_S
    while not event.query() and time.monotonic() < until_s:
        time.sleep(0.001)
