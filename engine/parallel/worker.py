"""The process of a rank other than 0: does what it is told, in order, until the pipe is closed.

python -m engine.parallel.worker FILE_DESCRIPTOR
"""

from __future__ import annotations

import gc
import os
import select
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from engine.fused.device import DeviceSettings, FusedDevice, StepInputs
from engine.models import LoadedModel
from engine.parallel.group import TensorGroup, open_store
from engine.parallel.messages import Begin, Done, Failed, FreeMemory, Join
from engine.parallel.sharding import divide_model


def main() -> None:
    """Serve the pipe that was given, and leave without any clean-up that could wait for somebody."""
    connection: Connection = Connection(int(sys.argv[1]))
    code = 0
    try:
        serve(connection)
    except EOFError:
        pass  # rank 0 is done, or gone
    except BaseException as error:
        code = 1
        reason = " ".join("".join(traceback.format_exception_only(error)).split())
        with suppress(OSError):
            connection.send(Failed(reason, traceback.format_exc()))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(connection: Connection) -> None:
    """Load a share, join the group, and run what comes. Raises ``EOFError`` at the end of the pipe."""
    threading.Thread(target=_leave_with_rank_0, args=(connection.fileno(),), daemon=True).start()
    begin: Begin = connection.recv()
    if begin.device.type == "cuda":
        torch.cuda.set_device(begin.device)
    torch.set_num_threads(begin.threads)
    model = divide_model(begin.build(begin.device), begin.division, begin.device)
    connection.send(Done())
    join: Join = connection.recv()
    group = TensorGroup(begin.division, model.vocab, model.dtype, begin.device, open_store(join.port))
    connection.send(Done())
    run(connection, model, group)


def run(connection: Connection, model: LoadedModel, group: TensorGroup) -> None:
    """Run steps. Each is begun as soon as it is here; on a GPU nothing of it is waited for."""
    model = replace(model, group=group)
    device: FusedDevice | None = None
    while True:
        message = connection.recv()
        if isinstance(message, StepInputs):
            if device is None:
                raise RuntimeError("a step came before what is to run it")
            device.run(message)
        elif isinstance(message, DeviceSettings):
            device = None
            _clean(model.device)
            device = FusedDevice(model, message)
            connection.send(Done())
        elif isinstance(message, FreeMemory):
            if message.drop:
                device = None
            connection.send(Done(_clean(model.device)))
        else:
            raise TypeError(f"no rank knows what {type(message).__name__} asks for")


def _leave_with_rank_0(pipe: int) -> None:
    """End the process when rank 0 writes no more to ``pipe``: whatever this one waits for will not come."""
    ends = select.poll()
    ends.register(pipe, getattr(select, "POLLRDHUP", 0))
    ends.poll()
    os._exit(0)


def _clean(device: torch.device) -> int:
    """Give back memory that nothing uses; the bytes that are free then (0 on a CPU)."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


if __name__ == "__main__":
    main()
