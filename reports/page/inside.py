"""What a page knows of the inside of its runs: the requests that it shows, and their stories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.charts import Series
from reports.chronicle import MOST_PIECES, Chronicle, Story, tell
from reports.sampling import sampled
from reports.waste import column

#: requests of all runs of a page together, and pieces of all their stories
MOST_REQUESTS, MOST_PIECES_OF_PAGE = 2000, 24_000
_FEWEST = 40


@dataclass(frozen=True)
class Inside:
    """A run's chronicle; ``origin_ns`` is its first arrival."""

    one: Series
    chronicle: Chronicle
    origin_ns: int

    @property
    def stories(self) -> list[Story]:
        """Of the requests that are shown, in order of arrival."""
        return sorted(self.chronicle.stories.values(), key=lambda story: (story.start_ns, story.number))


def insides_of(series: Sequence[Series]) -> list[Inside]:
    """The inside of every run that served a request, each with its share of what a page has room for."""
    runs = [one for one in series if (one.run.requests["outcome"] != "rejected").any()]
    if not runs:
        return []
    most = max(_FEWEST, MOST_REQUESTS // len(runs))
    insides = []
    for one in runs:
        numbers = sampled(one.run.requests, most)
        pieces = min(MOST_PIECES, max(6, MOST_PIECES_OF_PAGE // len(runs) // len(numbers)))
        origin_ns = int(column(one.run.requests, "arrival_ns").min())
        insides.append(Inside(one, tell(one.run, numbers, pieces), origin_ns))
    return insides
