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

    def add(self, entry: DigestEntry) -> None:
        """Add a plan of which ``entry.repeat`` steps were run."""
        run = self._run
        if run is not None:
            if (
                entry.kind == run.kind == "decode"
                and entry.ids == run.ids
                and entry.rows == run.rows
                and entry.starts == (run.starts + run.repeat * run.ids) & MASK64
            ):
                self._run = run._replace(repeat=run.repeat + entry.repeat)
                return
            self._hash.update(repr(tuple(run)).encode())
        self._run = entry

    def hexdigest(self) -> str:
        """The digest of all plans so far."""
        final = self._hash.copy()
        if self._run is not None:
            final.update(repr(tuple(self._run)).encode())
        return final.hexdigest()
