"""Host memory for swapped-out KV."""

from __future__ import annotations

import pytest

from scheduler.kv import HostMemory


def test_host_memory_holds_as_much_as_it_has() -> None:
    host = HostMemory(10)
    host.take(1, 6)
    assert host.room_for(4)
    assert not host.room_for(5)
    host.take(2, 4)
    assert host.held_tokens == 10
    assert host.give_back(1) == 6
    assert (host.held_tokens, host.room_for(6), host.room_for(7)) == (4, True, False)
    assert host.give_back(2) == 4
    assert host.held_tokens == 0


def test_host_memory_without_limit() -> None:
    host = HostMemory(None)
    host.take(1, 1 << 60)
    assert host.room_for(1 << 60)
    assert host.held_tokens == 1 << 60


def test_host_memory_gives_back_nothing_of_a_sequence_that_it_does_not_hold() -> None:
    host = HostMemory(10)
    assert host.give_back(3) == 0
    host.take(3, 2)
    host.give_back(3)
    assert host.give_back(3) == 0
    assert host.held_tokens == 0


def test_host_memory_refuses_too_much_and_the_same_sequence_twice() -> None:
    host = HostMemory(10)
    host.take(1, 6)
    with pytest.raises(RuntimeError, match="5 KV tokens do not fit: 6 of 10 are held"):
        host.take(2, 5)
    with pytest.raises(RuntimeError, match="holds 6 KV tokens of sequence 1 already"):
        host.take(1, 1)
    assert host.held_tokens == 6
