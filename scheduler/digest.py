"""One hash over all plans of a run, equal for step by step and fast-forward."""

from __future__ import annotations

import hashlib

from scheduler.cohorts import MASK64
from scheduler.plan import DigestEntry


def hash_id(request_id: str) -> int:
    """h(id): 64 bits that depend on nothing but the id."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "little")


class PlanDigest:
    """Merges plans into maximal runs and hashes those.

    A run is a decode plan repeated by the same sequences, each one token further each time. Since the runs are
    maximal, it does not matter in what pieces they are added.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._run: DigestEntry | None = None
        self._repeat = 0

    def add(self, entry: DigestEntry, steps: int | None = None) -> None:
        """Add a plan of which ``steps`` steps were run (default: all)."""
        run, repeat = self._run, entry.repeat if steps is None else steps
        if run is not None:
            if (
                entry.ids == run.ids
                and entry.kind == run.kind == "decode"
                and entry.rows == run.rows
                and entry.starts == (run.starts + self._repeat * run.ids) & MASK64
            ):
                self._repeat += repeat
                return
            self._hash.update(self._line(run))
        self._run, self._repeat = entry, repeat

    def _line(self, run: DigestEntry) -> bytes:
        kind, rows, ids, starts, tokens, _ = run
        return f"('{kind}', {rows}, {ids}, {starts}, {tokens}, {self._repeat})".encode()

    def hexdigest(self) -> str:
        """The digest of all plans so far."""
        final = self._hash.copy()
        if self._run is not None:
            final.update(self._line(self._run))
        return final.hexdigest()
