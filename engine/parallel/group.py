"""The collectives of the ranks of a model: sums of partial results, and logits put together."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor

from engine.parallel.sharding import Division

if TYPE_CHECKING:
    from engine.parallel.workers import Workers

#: much of it is named in no list of what the module gives out
dist: Any = torch.distributed
#: a rank that has not come to a collective, or to the end of a step, after so long is taken for lost
STALL_S = 300.0
#: what holds while a group is made unless the user has set it: multicast over NVLink is not available everywhere, and
#: torch is not to end the process for a lost rank, which is watched here
ENVIRONMENT = {"NCCL_NVLS_ENABLE": "0", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}
LOCALHOST = "127.0.0.1"
_MAKING = threading.Lock()


def open_store(port: int | None = None) -> Any:
    """Where ranks find each other: rank 0's, at a ``port`` of its own; the other ranks give that port."""
    return dist.TCPStore(LOCALHOST, port or 0, is_master=port is None, wait_for_workers=False)


class TensorGroup:
    """One rank's end of the group that a model is divided over: NCCL between GPUs, gloo between processes on a CPU.

    Made in all ranks at the same time; every collective has to be called in all of them in the same order. On a GPU
    they are enqueued on the current stream, and may be captured in a graph. ``vocab`` and ``dtype`` are the model's.
    """

    def __init__(self, division: Division, vocab: int, dtype: torch.dtype, device: torch.device, store: Any) -> None:
        self.rank, self.size = rank, size = division
        #: the other ranks' processes, in rank 0
        self.workers: Workers | None = None
        self._vocab, self._dtype, self._on_gpu = vocab, dtype, device.type == "cuda"
        self._sum = dist.AllreduceOptions()
        self._sum.asyncOp = False
        self._together = dist.distributed_c10d.AllgatherOptions()
        self._together.asyncOp = False
        with _environment():
            self._backend = _backend(rank, size, device, store)
            # a communicator is made at its first use, which must not be in a graph
            self.reduce(torch.zeros(1, 1, dtype=dtype, device=device))
            self.gather(torch.zeros(1, -(-vocab // size), dtype=dtype, device=device))
            if self._on_gpu:
                torch.cuda.synchronize(device)

    def reduce(self, update: Tensor) -> Tensor:
        """The sum over all ranks of ``update`` ``[T, N]``, or of float32 parts ``[P, T, N]`` of it.

        Parts are added up first, and rounded to the model's dtype.
        """
        if update.dim() == 3:
            update = update.sum(0).to(self._dtype)
        self._backend.allreduce([update], self._sum).wait()
        return update

    def gather(self, logits: Tensor) -> Tensor:
        """``[rows, vocab]`` of all ranks' ``[rows, part of vocab]``."""
        rows, part = logits.shape
        parts = logits.new_empty(self.size * rows, part)
        self._backend._allgather_base(parts, logits, self._together).wait()
        return (
            parts.view(self.size, rows, part)
            .transpose(0, 1)
            .reshape(rows, self.size * part)[:, : self._vocab]
            .contiguous()
        )

    def aborter(self) -> Callable[[], None]:
        """A call that lets go of the other ranks: what waits for them on the device ends, with a wrong result.

        It returns when no graph is left that has a collective in it. It does not keep this group alive.
        """
        return self._backend.abort if self._on_gpu else _nothing


def _backend(rank: int, size: int, device: torch.device, store: Any) -> Any:
    """Made by hand, since torch has one default group in a process, which is the user's."""
    timeout = timedelta(seconds=STALL_S)
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, size, options)
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=LOCALHOST)]
    return dist.ProcessGroupGloo(store, rank, size, options)


def _nothing() -> None:
    """On a CPU nothing waits for a process that is gone."""


@contextmanager
def _environment() -> Iterator[None]:
    """:data:`ENVIRONMENT` for what is read when a group is made; for one group at a time."""
    with _MAKING:
        ours = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name in ours:
                del os.environ[name]
