"""What is remembered of how memory was given back."""

from __future__ import annotations

from random import Random

from scheduler.kv.pieces import ReleaseHistory


def test_history_equals_one_entry_per_slot() -> None:
    for seed in range(60):
        random = Random(seed)
        history, slots = ReleaseHistory(), [None] * 12
        for _ in range(12):
            start = random.randrange(12)
            end = random.randrange(start + 1, 13)
            freed = random.choice(["finished", "evicted"])
            history.add(start, end, freed)
            slots[start:end] = [freed] * (end - start)
            for first in range(12):
                for last in range(first + 1, 13):
                    assert history.of(first, last) == (slots[first] if all(slots[first:last]) else None)


def test_history_keeps_no_more_runs_than_there_are() -> None:
    history = ReleaseHistory()
    for start in (0, 4, 2, 6):
        history.add(start, start + 2, "finished")
    assert history._starts == [0, 8]
    history.add(2, 4, "evicted")
    assert history._starts == [0, 2, 4, 8]
    history.add(2, 4, "finished")
    assert history._starts == [0, 8]
