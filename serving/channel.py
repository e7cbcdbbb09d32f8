"""Messages through a socket between two processes of one machine that trust each other: a length, then a pickle."""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")


def packed(message: object) -> bytes:
    """``message`` as it goes through the socket."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


class Channel:
    """A process's end, for threads: one may send while another receives."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._reader = end.makefile("rb")

    def send(self, message: object) -> None:
        """Raises ``OSError`` when nobody is at the other end any more."""
        self._end.sendall(packed(message))

    def receive(self) -> Any:
        """The next message, waiting for it. Raises ``EOFError`` when nobody is at the other end any more."""
        return pickle.loads(self._read(_LENGTH.unpack(self._read(_LENGTH.size))[0]))

    def _read(self, size: int) -> bytes:
        try:
            data = self._reader.read(size)
        except OSError:
            data = b""
        if len(data) < size:
            raise EOFError
        return data


async def receive(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises ``EOFError`` when nobody is at the other end any more."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return pickle.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, OSError):
        raise EOFError from None
