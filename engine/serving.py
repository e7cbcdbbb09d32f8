"""One thread that serves an engine's loop, and the mailboxes of those who wait for its news.

The thread runs the loop's steps. What a step gave is handed over once, when it has been completed: to each mailbox all
that is its own, and to each event loop of asyncio what all of its mailboxes get, in one call.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
import traceback
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar

from engine.errors import DeviceError, EngineStoppedError
from engine.faults import first_line
from engine.loop import EngineLoop, TokenOutput
from scheduler.errors import PolicyError
from scheduler.request import Request

Answer = TypeVar("Answer")


class Mailbox(ABC):
    """News of some requests on their way to whoever waits for them.

    With ``piecewise`` they come as they are made. Else they come all together when the last request has ended, and
    whoever waits is woken once. An error comes at once. ``name`` stands for all of the requests.
    """

    #: in whose thread everything is put in; ``None``: in any
    event_loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, name: str, request_ids: Sequence[str], *, piecewise: bool) -> None:
        self.name = name
        self.request_ids = request_ids
        #: nobody waits any more
        self.left = False
        self._open = len(request_ids)
        self._piecewise = piecewise
        self._held: list[TokenOutput] = []

    def take(self, outputs: list[TokenOutput]) -> None:
        """These news have come."""
        self._open -= sum(1 for output in outputs if output.finish_reason)
        self._held += outputs
        if self._piecewise or not self._open:
            self.put(self._held)
            self._held = []

    @abstractmethod
    def put(self, news: list[TokenOutput] | Exception) -> None:
        """Give ``news`` to whoever waits; an exception is raised there."""


class ThreadMailbox(Mailbox):
    """For a thread that waits."""

    def __init__(self, name: str, request_ids: Sequence[str], *, piecewise: bool) -> None:
        super().__init__(name, request_ids, piecewise=piecewise)
        self._queue: queue.SimpleQueue[list[TokenOutput] | Exception] = queue.SimpleQueue()

    def put(self, news: list[TokenOutput] | Exception) -> None:
        self._queue.put(news)

    def get(self) -> list[TokenOutput]:
        """The next news, which are waited for; Ctrl-C gets through."""
        return _opened(self._queue.get())


class TaskMailbox(Mailbox):
    """For a task of the event loop that runs now."""

    def __init__(self, name: str, request_ids: Sequence[str], *, piecewise: bool) -> None:
        super().__init__(name, request_ids, piecewise=piecewise)
        self.event_loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[list[TokenOutput] | Exception] = asyncio.Queue()

    def put(self, news: list[TokenOutput] | Exception) -> None:
        self._queue.put_nowait(news)

    async def get(self) -> list[TokenOutput]:
        """The next news, which are waited for."""
        return _opened(await self._queue.get())


def _opened(news: list[TokenOutput] | Exception) -> list[TokenOutput]:
    if isinstance(news, Exception):
        raise news
    return news


#: threads that serve, or did, each with its loop's ``stop``
_SERVING: dict[threading.Thread, weakref.WeakMethod[Callable[[], None]]] = {}


@atexit.register
def _end_all() -> None:
    """No thread may be in the middle of a step, or of giving memory back, when the interpreter goes.

    It has waited for all threads but ours by now: they may have needed an engine to come to their end.
    """
    serving = list(_SERVING.items())
    for _, reference in serving:
        stop = reference()
        if stop is not None:
            stop()
    for thread, _ in serving:
        thread.join()


#: something for a mailbox, and how it gets there
Delivery = tuple[Mailbox, Callable[[], None]]


class Serving:
    """Runs ``loop`` in a thread of its own, from now until :meth:`close`. For every thread.

    ``news`` is the list that the loop's listener appends to. ``close`` is called by the thread at its end. The thread
    keeps this object alive, not the one that owns it, whose finalizer calls :meth:`stop`. An interpreter that ends
    closes what is still being served.

    When the loop raises, the thread ends. Whoever waits is told at once, and later requests are refused with the same:
    a :class:`~engine.errors.DeviceError`, a :class:`~scheduler.errors.PolicyError`, or for everything else
    :class:`~engine.errors.EngineStoppedError`.

    No lock is held here: a collection of garbage may call :meth:`leave` and :meth:`stop` in the middle of anything.
    """

    def __init__(self, loop: EngineLoop, news: list[TokenOutput], close: Callable[[], None]) -> None:
        self._loop = loop
        self._news = news
        self._close = close
        #: of every request that has not ended
        self._mailboxes: dict[str, Mailbox] = {}
        self._questions: deque[Callable[[], None]] = deque()
        #: why nothing is served any more
        self._ended: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()
        for thread in [thread for thread in list(_SERVING) if not thread.is_alive()]:
            _SERVING.pop(thread, None)
        _SERVING[self._thread] = weakref.WeakMethod(loop.stop)

    # -- for every thread

    def submit(self, requests: Sequence[Request], mailbox: Mailbox) -> None:
        """Hand in the ``requests`` of ``mailbox``, to be taken up together.

        Raises what has ended the thread, and ``ValueError`` for an id that is in use and for what the loop refuses;
        none is taken then.
        """
        try:
            for request in requests:
                if self._mailboxes.setdefault(request.id, mailbox) is not mailbox:
                    raise ValueError(f"request id {request.id!r} is in use by a request that has not ended")
            # who is in by now is told when the thread ends
            if self._ended is not None:
                raise _again(self._ended)
            self._loop.submit(*requests)
        except BaseException:
            for request_id in self._waiting(mailbox):
                self._mailboxes.pop(request_id, None)
            raise

    def abort(self, name: str) -> bool:
        """End a request early, or all of a mailbox of that name, which is told. Whether there was any left to end."""
        if name in self._mailboxes:
            request_ids = [name]
        else:
            request_ids = [key for key, mailbox in list(self._mailboxes.items()) if mailbox.name == name]
        self._abort(request_ids)
        return bool(request_ids)

    def leave(self, mailbox: Mailbox) -> None:
        """Nobody waits for ``mailbox`` any more: those of its requests that have not ended are aborted."""
        mailbox.left = True
        self._abort(self._waiting(mailbox))

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """What ``question`` says, or raises, when the thread asks it between two steps.

        When nothing is served any more it is asked here and now.
        """
        answer: Future[Answer] = Future()
        self._questions.append(partial(_answer, question, answer))
        # where the thread ends after this, it answers at its end
        if self._ended is None:
            with suppress(DeviceError):
                self._loop.call(self._answer_all)
        else:
            self._answer_all()
        return answer.result()

    def stop(self) -> None:
        """The thread is to end after the step at hand; does not wait for that. Finalizers may call it."""
        self._loop.stop()

    def close(self) -> None:
        """Tell whoever waits that the engine has been closed, and return when the thread has ended.

        More than once does nothing more.
        """
        self.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _waiting(self, mailbox: Mailbox) -> list[str]:
        """Those of its requests that have not ended. An id may be another's by now."""
        return [request_id for request_id in mailbox.request_ids if self._mailboxes.get(request_id) is mailbox]

    def _abort(self, request_ids: Iterable[str]) -> None:
        with suppress(DeviceError):  # which is the end of them too
            for request_id in request_ids:
                self._loop.abort(request_id)

    # -- the thread

    def _serve(self) -> None:
        ended: Exception = EngineStoppedError("the engine has been closed")
        try:
            self._loop.serve(self._hand_over)
            self._finish()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            ended = _reported(error)
        try:
            self._hand_over()
        finally:
            self._end(ended)
            self._close()

    def _finish(self) -> None:
        """Complete what the device runs, and free all KV. Nobody is told what becomes of that."""
        self._loop.abort_all()
        self._news.clear()

    def _end(self, ended: Exception) -> None:
        """Tell everybody why nothing is served any more."""
        self._ended = ended
        waiting = {mailbox for mailbox in list(self._mailboxes.values()) if not mailbox.left}
        self._mailboxes.clear()
        self._put_in([(mailbox, partial(mailbox.put, _again(ended))) for mailbox in waiting])
        self._answer_all()

    def _hand_over(self) -> None:
        """Put the news that there are into their mailboxes."""
        if not self._news:
            return
        found: dict[Mailbox, list[TokenOutput]] = {}
        for output in self._news:
            # from now on the id of one that has ended is free
            mailbox = (self._mailboxes.pop if output.finish_reason else self._mailboxes.get)(output.request_id, None)
            if mailbox is not None and not mailbox.left:
                found.setdefault(mailbox, []).append(output)
        self._news.clear()
        self._put_in([(mailbox, partial(mailbox.take, outputs)) for mailbox, outputs in found.items()])

    def _put_in(self, deliveries: list[Delivery]) -> None:
        """Make ``deliveries``: those to tasks in the thread of their event loop, which is woken once for all."""
        elsewhere: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
        for delivery in deliveries:
            mailbox, deliver = delivery
            if mailbox.event_loop is None:
                deliver()
            else:
                elsewhere.setdefault(mailbox.event_loop, []).append(delivery)
        for event_loop, some in elsewhere.items():
            try:
                event_loop.call_soon_threadsafe(_make, some)
            except RuntimeError:  # it has been closed, and all who waited in it are gone
                for mailbox, _ in some:
                    self.leave(mailbox)

    def _answer_all(self) -> None:
        with suppress(IndexError):
            while True:
                self._questions.popleft()()


def _make(deliveries: list[Delivery]) -> None:
    for _, deliver in deliveries:
        deliver()


def _answer(question: Callable[[], Answer], answer: Future[Answer]) -> None:
    try:
        answer.set_result(question())
    except BaseException as error:
        answer.set_exception(error)


def _reported(error: BaseException) -> Exception:
    """What is said of an ``error`` that has ended the thread. It has no traceback, which would keep memory alive."""
    if isinstance(error, DeviceError | PolicyError):
        return type(error)(str(error))
    stopped = EngineStoppedError(f"the engine has met an unexpected error: {type(error).__name__}: {first_line(error)}")
    stopped.add_note("".join(traceback.format_exception(error)))
    return stopped


def _again(error: Exception) -> Exception:
    """The same for one more to raise, who adds frames of its own."""
    copy = type(error)(*error.args)
    for note in getattr(error, "__notes__", ()):
        copy.add_note(note)
    return copy
