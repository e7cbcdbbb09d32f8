"""Which of many requests a page shows: all remarkable ones, and of the others every n-th."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.summary import finished, latencies
from reports.waste import column

#: of a sample, this part is for each way to be remarkable
_TAIL_SHARE = 20


def sampled(requests: pd.DataFrame, most: int) -> list[int]:
    """Numbers of at most ``most`` requests that were served, in order.

    The tails are kept: whoever waited longest, came late with the first token, was slow from token to token, took
    longest, was preempted most often, or was aborted; with them requests at even distances.
    """
    served = requests[requests["outcome"] != "rejected"]
    numbers = column(served, "number")
    if len(numbers) <= most:
        return sorted(numbers.tolist())
    done = column(finished(requests), "number")
    of = latencies(requests)
    each = max(1, most // _TAIL_SHARE)
    keep: set[int] = set()
    for values in (of.queue, of.ttft, np.nan_to_num(of.tpot), of.e2e):
        keep.update(done[_largest(values, each)].tolist())
    preemptions = column(served, "preemptions")
    often = _largest(preemptions, each)
    keep.update(numbers[often[preemptions[often] > 0]].tolist())
    keep.update(numbers[(served["outcome"] == "aborted").to_numpy(np.bool_)][:each].tolist())
    others = np.setdiff1d(numbers, list(keep))
    room = most - len(keep)
    if room > 0 and len(others):
        keep.update(others[np.unique(np.linspace(0, len(others) - 1, room).astype(np.int64))].tolist())
    return sorted(keep)


def _largest(values: npt.NDArray[np.int64] | npt.NDArray[np.float64], count: int) -> npt.NDArray[np.intp]:
    """Places of the largest values, the first of equal ones before the others."""
    return np.argsort(-values, kind="stable")[:count]
