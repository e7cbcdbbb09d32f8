"""What a search shows while it goes: the best so far, and the time left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from reports.figures import number
from tuning.objectives import Objective

if TYPE_CHECKING:
    from tuning.search import Search

#: a line is printed this often where there is no bar
LINE_EVERY_S = 15.0


class Progress:
    """A bar on a terminal's standard error, else a line every so often; nothing if ``quiet``."""

    def __init__(self, objectives: Sequence[Objective], quiet: bool, say: Callable[[str], None]) -> None:
        self._objectives = objectives
        self._quiet = quiet
        self._say = say
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
        self._bar = Bar(*columns, disable=quiet or not os.isatty(2), transient=True)
        self._task = self._bar.add_task("searching", total=1.0)
        self._said_s = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def phase(self, text: str) -> None:
        """Something else is done now."""
        self._bar.update(self._task, description=text, completed=0, total=None)
        if self._bar.disable and not self._quiet:
            self._say(text)

    def show(self, search: Search) -> None:
        """Something has been simulated."""
        text = self.line(search)
        budget = search.budget
        done = search.used_s / budget.seconds if budget.seconds is not None else search.asked / (budget.settings or 1)
        self._bar.update(self._task, description=text, completed=min(1.0, done))
        now_s = time.monotonic()
        if self._bar.disable and not self._quiet and now_s - self._said_s >= LINE_EVERY_S:
            self._said_s = now_s
            self._say(text)

    def line(self, search: Search) -> str:
        """How far the search is."""
        best, left = search.best(), search.left_s
        parts = [f"{search.asked} settings"]
        if best is not None:
            values = (
                f"{objective.title} {number(value)} {objective.unit}"
                for objective, value in zip(self._objectives, best.results[-1].values, strict=True)
            )
            parts.append(f"best so far: {best.setting}: {', '.join(values)}")
        if left is not None:
            parts.append(f"{left:.0f} s left")
        return "; ".join(parts)
