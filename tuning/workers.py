"""Who simulates: this process, several of this machine, or the nodes of a Ray cluster. All give the same results."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

from tuning.errors import TuningError
from tuning.world import Evaluation, Job, World


class Workers(Protocol):
    """Simulates jobs."""

    @property
    def count(self) -> int:
        """Of jobs at a time."""

    def submit(self, job: Job) -> Future[Evaluation]:
        """Begin a job."""


class _Here:
    """This process, one job after the other."""

    count = 1

    def __init__(self, world: World) -> None:
        self._world = world

    def submit(self, job: Job) -> Future[Evaluation]:
        done: Future[Evaluation] = Future()
        done.set_result(self._world.evaluate(job))
        return done


#: of a worker process: it is handed over once, not with each job
_world: World | None = None


def _take(world: World) -> None:
    global _world
    _world = world
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process that is killed cannot end its workers, which would wait for jobs for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _evaluate(job: Job) -> Evaluation:
    if _world is None:
        raise RuntimeError("a worker without a world")
    return _world.evaluate(job)


class _Processes:
    def __init__(self, pool: ProcessPoolExecutor, count: int) -> None:
        self.count = count
        self._pool = pool

    def submit(self, job: Job) -> Future[Evaluation]:
        return self._pool.submit(_evaluate, job)


def _evaluate_in(world: World, job: Job) -> Evaluation:
    return world.evaluate(job)


class _Ray:
    """Jobs as tasks of a Ray cluster, one a CPU."""

    def __init__(self, ray: Any, world: World) -> None:
        self.count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._world = ray.put(world)

        self._evaluate = ray.remote(num_cpus=1, max_retries=3)(_evaluate_in)

    def submit(self, job: Job) -> Future[Evaluation]:
        found: Future[Evaluation] = self._evaluate.remote(self._world, job).future()
        return found


@contextmanager
def workers_for(world: World, count: int | None, ray_address: str | None) -> Iterator[Workers]:
    """Workers: on the Ray cluster at ``ray_address``, or ``count`` processes (by default one a core)."""
    if ray_address is not None:
        if count is not None:
            raise TuningError("--workers has no effect with --ray, whose cluster says how many; leave it out")
        with _ray_workers(world, ray_address) as workers:
            yield workers
        return
    count = count or len(os.sched_getaffinity(0))
    if count == 1:
        yield _Here(world)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_take, initargs=(world,))
    try:
        yield _Processes(pool, count)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _ray_workers(world: World, address: str) -> Iterator[Workers]:
    try:
        import ray
    except ImportError:
        raise TuningError("--ray needs Ray: pip install 'lockstep[cluster]'") from None
    started = not ray.is_initialized()
    try:
        if started:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise TuningError(f"--ray {address}: {' '.join(str(error).split())[:200]}") from None
    try:
        yield _Ray(ray, world)
    finally:
        if started:
            ray.shutdown()
