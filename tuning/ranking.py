"""Who is better, and how sure that is: of one objective by its value, of several by who dominates whom."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from tuning.objectives import Objective
from tuning.world import Evaluation

#: pairs of blocks that a statement needs
LEAST_PAIRS = 4
#: a candidate is given up where chance alone would make it look so bad only this often
GIVE_UP = 0.025


def upwards(result: Evaluation, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """The values, larger is better; a failed evaluation is below all others."""
    if result.failed:
        return (-math.inf,) * len(objectives)
    return tuple(
        value if objective.maximise else -value for value, objective in zip(result.values, objectives, strict=True)
    )


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether ``one`` is nowhere worse and somewhere better; both larger is better."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def fronts(points: Sequence[Sequence[float]]) -> list[list[int]]:
    """Indices by how many layers of better points lie above them: the first list is what nobody dominates."""
    left = list(range(len(points)))
    found = []
    while left:
        front = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        found.append(front)
        left = [i for i in left if i not in front]
    return found


def best_first(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices, the best first. Of several objectives layer by layer, and in a layer those that stand alone first (the
    crowding distance of NSGA-II, Deb et al., IEEE Transactions on Evolutionary Computation 6(2), 2002)."""
    if points and len(points[0]) == 1:
        return sorted(range(len(points)), key=lambda i: (-points[i][0], i))
    order: list[int] = []
    for front in fronts(points):
        distance = dict.fromkeys(front, 0.0)
        for axis in range(len(points[0])):
            along = sorted(front, key=lambda i: points[i][axis])
            span = points[along[-1]][axis] - points[along[0]][axis]
            distance[along[0]] = distance[along[-1]] = math.inf
            if span > 0 and math.isfinite(span):
                for before, here, after in zip(along, along[1:], along[2:], strict=False):
                    distance[here] += (points[after][axis] - points[before][axis]) / span
        order += sorted(front, key=lambda i: (-distance[i], i))
    return order


def cannot_win(result: Evaluation, leader: Evaluation) -> bool:
    """Whether ``result`` is worse than ``leader`` beyond chance, in every objective: both have seen the same requests,
    so that their blocks are compared in pairs (Student's t)."""
    if result.failed:
        return True
    if not result.blocks or not all(len(blocks) >= LEAST_PAIRS for blocks in result.blocks):
        return False
    return all(_below(blocks, others) for blocks, others in zip(result.blocks, leader.blocks, strict=True))


def _below(blocks: Sequence[float], others: Sequence[float]) -> bool:
    if len(blocks) != len(others):
        return False
    difference = np.array(blocks) - np.array(others)
    if not np.isfinite(difference).all():
        return bool(np.isneginf(difference).any())
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference))
    return float(difference.mean()) + float(stdtrit(len(difference) - 1, 1 - GIVE_UP)) * error < 0
