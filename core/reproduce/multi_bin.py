"""Multi-bin batching: what bins of similar length give a server whose batches run until their longest member ends.

Equation 4 of the paper, with B rows, service uniform on [l_min, l_max] and k bins:
B / [(l_max + l_min) / 2 + (1 / k) (B l_max / (B + 1) + l_min / (B + 1) - (l_max + l_min) / 2)].
Its unit of time is that of the service times: a batch takes the longest service time in it.
"""

from __future__ import annotations

from random import Random

from core.reproduce.experiment import MS, Experiment, Options, StepCosts, play
from reports.reproduction import Findings, Row
from scheduler.config import SchedulerConfig
from scheduler.request import Request

ROWS = 128
SHORTEST, LONGEST = 1, 20
#: tokens of one unit of service: fine enough for the paper's continuous times
UNIT_TOKENS = 1_000
#: published for k bins
PUBLISHED = {1: 6.447, 2: 8.434, 4: 9.970, 5: 10.347}
#: pieces of equal mass that the bins of every k are made of, and batches that each piece fills
PIECES, BATCHES = 20, 2


def throughput(bins: int, rows: int = ROWS, shortest: float = SHORTEST, longest: float = LONGEST) -> float:
    """Requests per unit of time by equation 4."""
    middle = (longest + shortest) / 2
    return rows / (middle + (rows * longest / (rows + 1) + shortest / (rows + 1) - middle) / bins)


def service_tokens(seed: int, rows: int = ROWS, batches: int = BATCHES) -> list[int]:
    """Service times in tokens, in order of arrival: uniform, with the same number in each of the pieces.

    So each bin fills whole batches, and no half-empty last one blurs the figure.
    """
    rng = Random(f"multi-bin {seed}")
    width = (LONGEST - SHORTEST) * UNIT_TOKENS // PIECES
    low = SHORTEST * UNIT_TOKENS
    tokens = [
        low + piece * width + int(rng.random() * width) + 1 for piece in range(PIECES) for _ in range(rows * batches)
    ]
    # Fisher and Yates, with nothing of the random source but its numbers
    for last in range(len(tokens) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        tokens[last], tokens[other] = tokens[other], tokens[last]
    return tokens


def piece_ends() -> tuple[int, ...]:
    """The largest output length of each piece: quantiles from which a policy makes bins of equal mass."""
    width = (LONGEST - SHORTEST) * UNIT_TOKENS // PIECES
    return tuple(SHORTEST * UNIT_TOKENS + (piece + 1) * width + 1 for piece in range(PIECES))


def requests_of(tokens: list[int]) -> list[Request]:
    """All there at once; a prefill gives the first token for nothing, so that n + 1 tokens are n steps."""
    return [Request(f"b{index}", 0, 1, n + 1, n + 1) for index, n in enumerate(tokens)]


def measured(config: SchedulerConfig, tokens: list[int]) -> float:
    """Requests per unit of time, from the first arrival to the last finish."""
    _, sequences = play(config, requests_of(tokens), StepCosts(0, MS))
    return len(tokens) / (max(sequence.finish_ns for sequence in sequences) / (UNIT_TOKENS * MS))


def in_bins(tokens: list[int], bins: int, rows: int = ROWS) -> list[int]:
    """The same requests in the order in which bins of equal mass hand out full batches."""
    edges = sorted(tokens)
    limits = [edges[len(edges) * (index + 1) // bins - 1] for index in range(bins)]
    open_batches: list[list[int]] = [[] for _ in limits]
    order: list[int] = []
    for n in tokens:
        batch = open_batches[next(index for index, limit in enumerate(limits) if n <= limit)]
        batch.append(n)
        if len(batch) == rows:
            order += batch
            batch.clear()
    return order + [n for batch in open_batches for n in batch]


def run(options: Options) -> Findings:
    """Throughput at saturation by bins; and that the gain is gone when rows are refilled as they end."""
    tokens = service_tokens(options.seed)
    rows = []
    for bins, published in PUBLISHED.items():
        config = SchedulerConfig(
            policy="multi-bin", max_running=ROWS, oracle="true", bins=bins, length_quantiles=piece_ends()
        )
        rows.append(Row.within(f"{bins} bin{'s' * (bins > 1)}, requests a unit", published, measured(config, tokens),
                               0.005))  # fmt: skip
    rows += [
        Row.rounded(f"{bins} bin{'s' * (bins > 1)}, equation 4", published, throughput(bins), 3)
        for bins, published in PUBLISHED.items()
    ]
    continuous = SchedulerConfig(policy="fcfs", max_running=ROWS)
    plain = measured(continuous, tokens)
    most = max(PUBLISHED)
    binned = measured(continuous, in_bins(tokens, most))
    limit = 2 * ROWS / (SHORTEST + LONGEST)
    rows += [
        Row.within("iteration level, 5 bins over none", 1.0, binned / plain, 0.02),
        Row("iteration level over 5 bins to completion", 1.0, plain / PUBLISHED[most],
            relation="at least", allowed="at least"),
    ]  # fmt: skip
    return Findings(
        name=EXPERIMENT.name,
        title=EXPERIMENT.title,
        source=EXPERIMENT.source,
        setup=(
            f"{ROWS} rows, {len(tokens):,} requests there at once, service uniform on [{SHORTEST}, {LONGEST}] in units "
            f"of {UNIT_TOKENS:,} tokens, true lengths; a batch takes the longest service time in it."
        ),
        rows=tuple(rows),
        notes=(
            f"Each of {PIECES} pieces of equal mass holds {ROWS * BATCHES} requests, so that every bin fills whole "
            "batches.",
            f"At iteration level a row is refilled as its request ends: {plain:.3f} requests a unit without bins, "
            f"{binned:.3f} if the same batches of 5 bins come one after the other, of at most {limit:.3f} (rows / mean "
            "service; what is missing is the end of the run, when rows stay empty). Equation 4 tends to the same limit "
            "with many bins: bins repair what run-to-completion batches waste, and there is nothing else to repair.",
        ),
    )


EXPERIMENT = Experiment(
    "multi-bin",
    "Multi-bin batching, equation 4",
    "Guldogan et al., Multi-Bin Batching for Increasing LLM Inference Throughput (arXiv 2412.04504), equation 4",
    run,
)
