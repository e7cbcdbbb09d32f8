"""Key figures, each with its interval and its number of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from reports.agreement import Agreement
from reports.charts import Series
from reports.figures import figure_at, quantity
from reports.page.series import best_of, judged, tail_of
from reports.run import look_up


@dataclass(frozen=True)
class Tile:
    name: str
    value: str
    detail: str

    def markup(self) -> str:
        amount, _, unit = self.value.partition(" ")
        return (
            f'<div class="tile"><div class="name">{escape(self.name)}</div>'
            f'<div class="value">{escape(amount)} <small>{escape(unit)}</small></div>'
            f'<div class="detail">{escape(self.detail)}</div></div>'
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
        return Tile(f"{title} P50", value(f"{key}.p50"), f"{name} {value(f'{key}.{tail}')}")

    tiles = [
        Tile("Output throughput", value("output_tokens_per_s"), f"{value('requests_per_s')} requests"),
        latency("ttft_ms", "TTFT"),
        latency("tpot_ms", "TPOT"),
        latency("e2e_ms", "E2E"),
        Tile("Decode waste", value("padding_waste.decode"), f"prefill {value('padding_waste.prefill')}"),
        Tile("Decode batch", value("mean_decode_batch"), f"{value('batch_occupancy')} occupied"),
    ]
    if look_up(summary, "slo_attainment.share") is not None:
        tiles.append(Tile("Goodput", value("goodput_per_s"), f"{value('slo_attainment.share')} meet all objectives"))
    return tiles


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
                Tile(f"{word} {title}", quantity(look_up(best.run.summary, path), figure.unit), best.run.label)
            )
    if agreements:
        same = sum(agreement.same_plans for agreement in agreements)
        tiles.append(Tile("Plans the same", f"{same} of {len(agreements)}", "real beside simulated"))
        errors = [a.mean_error for a in agreements if a.mean_error is not None]
        if errors:
            mean = sum(errors) / len(errors)
            tiles.append(Tile("Simulation error", quantity(mean, "share"), "mean size, over all times and rates"))
    return tiles
