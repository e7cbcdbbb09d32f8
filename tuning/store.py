"""What has been simulated, kept in SQLite: whoever is killed goes on from there."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from tuning.errors import TuningError
from tuning.world import Evaluation

STORE_FILE = "evaluations.sqlite"
#: of what is kept; another one is refused
VERSION = "3"


class Store:
    """The evaluations of one problem by the keys of their jobs.

    ``problem`` are the things that decide what an evaluation gives: a folder of another problem is refused, with what
    differs. Written at once, so that nothing that has ended is lost.
    """

    def __init__(self, folder: Path, problem: dict[str, Any]) -> None:
        path = folder / STORE_FILE
        self._known: dict[str, Evaluation] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT)")
            self._database.execute("CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value INTEGER)")
            self._database.execute("CREATE TABLE IF NOT EXISTS evaluations (job TEXT PRIMARY KEY, result TEXT)")
            self._check(path, {"version": VERSION, **problem})
            for job, result in self._database.execute("SELECT job, result FROM evaluations"):
                self._known[job] = Evaluation.from_dict(json.loads(result))
        except (sqlite3.Error, OSError) as error:
            raise TuningError(f"cannot use {path}: {error}") from error

    def _check(self, path: Path, problem: dict[str, Any]) -> None:
        texts = {name: json.dumps(value, sort_keys=True) for name, value in problem.items()}
        there = dict(self._database.execute("SELECT name, value FROM about"))
        differing = [name for name, text in texts.items() if there.get(name, text) != text]
        if differing:
            name = differing[0]
            raise TuningError(
                f"{path} is of another tuning: {name} is {there[name]} there and {texts[name]} here; give another --out"
            )
        self._database.executemany("INSERT OR IGNORE INTO about VALUES (?, ?)", texts.items())
        self._database.commit()

    def get(self, job: str) -> Evaluation | None:
        """What a job came to, if it has been simulated."""
        return self._known.get(job)

    def put(self, job: str, result: Evaluation) -> None:
        """Keep what a job came to."""
        self._known[job] = result
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?)", (job, _text(result)))

    def number(self, name: str) -> int:
        """A number that was noted; 0 where none was."""
        row = self._database.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def set_number(self, name: str, value: int) -> None:
        """Note a number."""
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    @property
    def seconds(self) -> float:
        """Processor time of all that is kept."""
        return sum(result.seconds for result in self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        self._database.close()


def _text(result: Evaluation) -> str:
    # infinite values stand for what is no service at all, and Python's JSON has them
    return json.dumps(result.as_dict())
