"""One hash over all plans, whatever the pieces in which they were run."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_runs import examples

from scheduler.digest import PlanDigest, hash_id
from scheduler.plan import DigestEntry

A, B, C = (hash_id(name) for name in "abc")
MASK = (1 << 64) - 1


def decode(members: dict[int, int], repeat: int = 1) -> DigestEntry:
    """A decode step of members by hash, at these start positions."""
    ids = sum(members) & MASK
    starts = sum(h * start for h, start in members.items()) & MASK
    return DigestEntry("decode", len(members), ids, starts, ids, repeat)


def digest_of(*entries: DigestEntry) -> str:
    digest = PlanDigest()
    for entry in entries:
        digest.add(entry)
    return digest.hexdigest()


def pieces(members: dict[int, int], cuts: list[int]) -> list[DigestEntry]:
    """One stretch, cut into stretches of these lengths."""
    found = []
    done = 0
    for cut in cuts:
        found.append(decode({h: start + done for h, start in members.items()}, cut))
        done += cut
    return found


@examples(60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.lists(st.integers(0, 10**6), min_size=1, max_size=3))
def test_any_cut_of_a_stretch_gives_the_same_digest(cuts: list[int], starts: list[int]) -> None:
    members = dict(zip((A, B, C), starts, strict=False))
    after = decode({C: 5}, 2) if len(starts) < 3 else decode({A: 5}, 2)
    whole = digest_of(decode(members, sum(cuts)), after)
    assert digest_of(*pieces(members, cuts), after) == whole
    assert digest_of(*pieces(members, [1] * sum(cuts)), after) == whole


@pytest.mark.parametrize(
    "other",
    [
        [decode({A: 10, B: 20}, 6)],
        [decode({A: 11, B: 20}, 5)],
        [decode({A: 10, C: 20}, 5)],
        [decode({A: 20, B: 10}, 5)],
        [decode({A: 10, B: 20, C: 3}, 5)],
        [decode({A: 10, B: 20}, 4)],
        [decode({A: 10, B: 20}, 2), decode({A: 13, B: 23}, 3)],
        [decode({A: 10, B: 20}, 2), decode({A: 10, B: 20}, 3)],
        [],
    ],
)
def test_another_run_has_another_digest(other: list[DigestEntry]) -> None:
    assert digest_of(*other) != digest_of(decode({A: 10, B: 20}, 5))


def test_a_prefill_is_never_merged() -> None:
    one = DigestEntry("prefill", 1, A, 0, A * 8 & MASK, 1)
    assert digest_of(one, one) != digest_of(one._replace(repeat=2))
    apart = digest_of(decode({A: 8}, 2), one, decode({A: 10}, 2))
    assert apart != digest_of(decode({A: 8}, 4), one)
    assert digest_of(one) != digest_of(one._replace(tokens=A * 9 & MASK))


def test_the_digest_can_be_read_at_any_time() -> None:
    digest = PlanDigest()
    assert digest.hexdigest() == hashlib.sha256().hexdigest()
    digest.add(decode({A: 1}, 2))
    before = digest.hexdigest()
    assert digest.hexdigest() == before
    digest.add(decode({A: 3}, 2))
    assert digest.hexdigest() == digest_of(decode({A: 1}, 4)) != before


def test_the_hash_of_an_id_never_changes() -> None:
    """Recorded digests stay comparable: BLAKE2b of the UTF-8 bytes, 8 of its bytes, least significant first."""
    assert hash_id("request 0") == 0x874F_288B_6ED1_5F72
    assert hash_id("租") != hash_id("房")


def test_two_steps_are_merged_only_when_their_members_are_the_same() -> None:
    """Other members whose sums of positions happen to go on are another run."""
    first = decode({A: 10})
    other = DigestEntry("decode", 1, B, A * 11 & MASK, B, 1)
    assert digest_of(first, other) != digest_of(first._replace(repeat=2))
