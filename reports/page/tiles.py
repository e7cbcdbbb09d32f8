"""Key figures, each with its interval and its number of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from reports.agreement import Agreement
from reports.charts import Series
from reports.figures import figure_at, interval_at, interval_text, number, quantity
from reports.page.series import best_of, judged, tail_of
from reports.run import look_up


@dataclass(frozen=True)
class Tile:
    """A figure; ``sure``: its interval and what it is of."""

    name: str
    value: str
    detail: str
    sure: str = ""

    def markup(self) -> str:
        sure = f'<div class="detail">{escape(self.sure)}</div>' if self.sure else ""
        amount, _, unit = self.value.partition(" ")
        return (
            f'<div class="tile"><div class="name">{escape(self.name)}</div>'
            f'<div class="value">{escape(amount)} <small>{escape(unit)}</small></div>'
            f'<div class="detail">{escape(self.detail)}</div>{sure}</div>'
        )


def tiles(series: Sequence[Series], agreements: Sequence[Agreement]) -> str:
    tiles = _tiles_of_one(series[0]) if len(series) == 1 else _tiles_of_many(series, agreements)
    return f'<div class="tiles">{"".join(tile.markup() for tile in tiles)}</div>'


def _tiles_of_one(one: Series) -> list[Tile]:
    summary = one.run.summary

    def value(path: str) -> str:
        return quantity(look_up(summary, path), figure_at(path).unit)

    def latency(key: str, title: str) -> Tile:
        tail = tail_of([one], key)
        name = tail.upper() if tail != "max" else "max"
        return Tile(f"{title} P50", value(f"{key}.p50"), f"{name} {value(f'{key}.{tail}')}", _sure(one, f"{key}.p50"))

    tiles = [
        Tile(
            "Output throughput",
            value("output_tokens_per_s"),
            f"{value('requests_per_s')} requests",
            f"n = {number(look_up(summary, 'requests.finished'))}",
        ),
        latency("ttft_ms", "TTFT"),
        latency("tpot_ms", "TPOT"),
        latency("e2e_ms", "E2E"),
        Tile(
            "Decode waste",
            value("padding_waste.decode"),
            f"prefill {value('padding_waste.prefill')}",
            f"exact, of {number(look_up(summary, 'steps.total'))} steps",
        ),
        Tile("Decode batch", value("mean_decode_batch"), f"{value('batch_occupancy')} occupied"),
    ]
    if look_up(summary, "slo_attainment.share") is not None:
        tiles.append(
            Tile(
                "Goodput",
                value("goodput_per_s"),
                f"{value('slo_attainment.share')} meet all objectives",
                _sure(one, "slo_attainment.share"),
            )
        )
    return tiles


def _sure(one: Series, path: str) -> str:
    """``31.2 – 33.8 ms, n = 499``: the 95 % interval of a figure, and how many requests it is of."""
    interval = interval_text(interval_at(one.run.summary, path), figure_at(path).unit)
    n = look_up(one.run.summary, f"{path.partition('.')[0]}.n")
    return ", ".join(part for part in (interval, f"n = {number(n)}" if n is not None else "") if part)


def _tiles_of_many(series: Sequence[Series], agreements: Sequence[Agreement]) -> list[Tile]:
    among = judged(series)
    tiles = []
    for path in ("output_tokens_per_s", "ttft_ms.p50", f"e2e_ms.{tail_of(among, 'e2e_ms')}", "padding_waste.decode"):
        figure = figure_at(path)
        best = best_of(among, figure)
        if best is not None:
            word = "Highest" if figure.better == "higher" else "Lowest"
            title = figure.title if figure.title.split()[0].isupper() else figure.title.lower()
            tiles.append(
                Tile(
                    f"{word} {title}",
                    quantity(look_up(best.run.summary, path), figure.unit),
                    best.run.label,
                    _sure(best, path),
                )
            )
    if agreements:
        same = sum(agreement.same_plans for agreement in agreements)
        tiles.append(Tile("Plans the same", f"{same} of {len(agreements)}", "real beside simulated"))
        errors = [a.mean_error for a in agreements if a.mean_error is not None]
        if errors:
            mean = sum(errors) / len(errors)
            tiles.append(Tile("Simulation error", quantity(mean, "share"), "mean size, over all times and rates"))
    return tiles
