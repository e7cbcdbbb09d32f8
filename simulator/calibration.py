"""The shares of its GPU's datasheet that a recording reached, fitted to its steps.

All kinds of step of a layout are fitted together: they share the matrix products, prompts and decode rows tell apart
what binds them. Deviations are those of the logarithm, so that each step counts by its relative error, and large ones
count as their size, not its square (``soft_l1``): a recording has stalls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import least_squares

from scheduler.config import unknown_name
from scheduler.model_shapes import DTYPE_BYTES, MODEL_SHAPES, ModelShape, UnknownShapeError, model_shape
from scheduler.plan import Layout, StepColumns
from simulator.costs import CostError
from simulator.fits import FEWEST_STEPS, mean_error
from simulator.gpus import GPUS, Gpu, gpu_of
from simulator.least_squares import one_thread
from simulator.profiles import Profile, title
from simulator.projection import ProjectedCosts, SharedRoofline, Shares
from simulator.recorded import Key, RecordedCosts, costs_of
from simulator.roofline import MEMORY_SHARE, WORKSPACE_BYTES
from simulator.step_cost import COST_COLUMNS

Floats = npt.NDArray[np.float64]

#: A relative error from which on a step counts by its error's size, no more by its square.
STALL = 0.05
#: What the shares are taken to be where the steps do not tell, and how little it takes to tell otherwise: a share that
#: is off by a factor of e costs as much as one step that is off by 5 %. The last two were seen on shapes of 0.1 and
#: 0.5 billion weights on an H100, whose steps have little else.
ROW_KV, ATTENTION, MIXED, LOGIT_BYTES, LAYER_NS, LAUNCH_NS = 0.3, 0.3, 1.1, 50.0, 40_000.0, 400_000.0
PRIOR_WEIGHT = 0.05
#: more than this share of the memory besides weights and KV was not needed, but left free on purpose
MOST_WORKSPACE = 0.15
#: bytes of an element that the datasheets' operations are for
_ELEMENT = 2


@dataclass(frozen=True)
class Calibration:
    """Shares by layout, and what they are off by on the steps that they were fitted to: mean |error| / mean."""

    gpu: Gpu
    shape: ModelShape
    dtype: str
    shares: Mapping[Layout, Shares]
    errors: Mapping[Key, float]


def project(name: str, profile: Profile, gpu: str, model: str | None = None, data: bytes = b"") -> ProjectedCosts:
    """The costs ``name``: ``profile`` moved to the GPU called ``gpu`` and, if one is named, to another ``model``.

    ``data`` is what the profile was read from. :class:`CostError` in one line for unknown names, for what a roofline
    knows nothing of, and for a model that does not fit.
    """
    if gpu not in GPUS:
        raise CostError(unknown_name("GPU", gpu, GPUS))
    target = GPUS[gpu]
    recorded = costs_of(name, profile.about, profile.steps, data)
    found = calibrate(profile, recorded)
    shape = found.shape if model is None else _shape(model)
    costs = ProjectedCosts(
        name, target, shape, found.dtype, found.shares, recorded, found.errors,
        _workspace_bytes(found, recorded.kv_tokens), title(profile.about), found.shape,
    )  # fmt: skip
    if not costs.kv_tokens:
        raise CostError(
            f"{shape.name} in {found.dtype} leaves no room for KV on an {target.title}; take a smaller model"
        )
    return costs


def calibrate(profile: Profile, recorded: RecordedCosts) -> Calibration:
    """The shares that ``profile`` reached; ``recorded`` are its own costs.

    :class:`CostError` for hardware or a model that nobody knows, and for what a roofline knows nothing of.
    """
    gpu, shape, dtype = _origin(profile.about)
    steps = _measured(profile)
    shares: dict[Layout, Shares] = {}
    for layout in get_args(Layout):
        groups = list(_groups(steps[steps["layout"] == layout]))
        if groups:
            link = _link(gpu, shape, dtype, recorded.swap_token_ns.get(layout))
            shares[layout] = _fit(gpu, shape, dtype, groups, link)
    rooflines = {layout: SharedRoofline(gpu, shape, found, dtype) for layout, found in shares.items()}
    return Calibration(gpu, shape, dtype, shares, errors_on(profile, rooflines))


def errors_on(profile: Profile, rooflines: Mapping[Layout, SharedRoofline]) -> dict[Key, float]:
    """What ``rooflines`` are off by on the steps of ``profile``: mean |error| / mean, by layout and kind."""
    predicted: dict[Key, list[Floats]] = {}
    measured: dict[Key, list[Floats]] = {}
    for group in _groups(_measured(profile)):
        columns = group.columns
        if columns.layout in rooflines:
            key = (columns.layout, columns.kind)
            predicted.setdefault(key, []).append(1e9 * rooflines[columns.layout].seconds(columns, group.graph))
            measured.setdefault(key, []).append(1e9 * group.seconds)
    return {key: mean_error(np.concatenate(predicted[key]), np.concatenate(measured[key])) for key in measured}


def _measured(profile: Profile) -> pd.DataFrame:
    """The steps that moved no KV, shared none (a roofline reads each row's from memory) and were not lost; of those,
    where there are any, the ones that overlap none."""
    steps = profile.steps
    steps = steps[(steps["swapped_tokens"] == 0) & (steps["shared_kv_tokens"] == 0) & (steps["device_ns"] > 0)]
    alone = steps["overlap"] == 0
    return steps[alone] if alone.any() else steps


class _Group(NamedTuple):
    """Steps of one kind, all as graphs or none: their features, an array each, and what they took."""

    columns: StepColumns
    graph: bool
    seconds: Floats


def _groups(steps: pd.DataFrame) -> Iterator[_Group]:
    by: Any = steps.groupby(["layout", "kind", steps["graph_rows"] > 0])
    for (layout, kind, graph), table in by:
        if len(table) < FEWEST_STEPS:
            continue
        feature: dict[str, Any] = {name: table[name].to_numpy(np.float64) for name in COST_COLUMNS}
        rows = feature["rows_computed"]
        columns = StepColumns(
            layout=layout, kind=kind, repeat=1, rows=rows, new_tokens=feature["new_tokens_computed"],
            context_tokens=feature["kv_columns_computed"],
            # recordings do not tell which rows were sampled: of nearly all prompts their last chunk
            sampled_rows=rows if kind == "mixed" else 1,
            **feature,
        )  # fmt: skip
        yield _Group(columns, bool(graph), table["device_ns"].to_numpy(np.float64) / 1e9)


def _fit(gpu: Gpu, shape: ModelShape, dtype: str, groups: Sequence[_Group], link: float) -> Shares:
    launched = [group.columns.kind for group in groups if not group.graph]
    assumed = np.array([
        gpu.weight_efficiency, gpu.compute_efficiency, gpu.kv_efficiency, ROW_KV, ATTENTION,
        LOGIT_BYTES, LAYER_NS, MIXED, *[LAUNCH_NS] * len(launched),
    ])  # fmt: skip

    def shares(logs: Floats) -> Shares:
        weights, products, kv, row_kv, attention, logit_bytes, layer_ns, mixed, *launch_ns = map(
            float, assumed * np.exp(logs)
        )
        launches = dict(zip(launched, launch_ns, strict=True))
        return Shares(weights, products, kv, row_kv, attention, link, logit_bytes, layer_ns, mixed, launches)

    def deviations(logs: Floats) -> Floats:
        roofline = SharedRoofline(gpu, shape, shares(logs), dtype)
        off = [np.log(roofline.seconds(group.columns, group.graph) / group.seconds) for group in groups]
        return np.concatenate([*off, PRIOR_WEIGHT * logs])

    least, most = np.full(len(assumed), -np.inf), np.full(len(assumed), np.inf)
    most[:5] = -np.log(assumed[:5])  # no share is more than the whole
    least[7] = -np.log(MIXED)  # and no mixed step is less than its parts
    with one_thread():
        found = least_squares(deviations, np.zeros(len(assumed)), bounds=(least, most), loss="soft_l1", f_scale=STALL)
    return shares(found.x)


def _link(gpu: Gpu, shape: ModelShape, dtype: str, swap_token_ns: float | None) -> float:
    """The share of the link to host memory that recorded swaps reached; the GPU's usual one where there were none."""
    if not swap_token_ns:
        return gpu.host_efficiency
    return min(1.0, shape.kv_bytes_per_token(DTYPE_BYTES[dtype]) / (swap_token_ns / 1e9 * gpu.host_bandwidth))


def _workspace_bytes(found: Calibration, kv_tokens: int | None) -> int:
    """What the engine held besides weights and KV on the recorded GPU, if it left the memory no other way."""
    kv_bytes = (kv_tokens or 0) * found.shape.kv_bytes_per_token(DTYPE_BYTES[found.dtype])
    held = int(found.gpu.memory * MEMORY_SHARE - found.shape.weight_bytes(found.dtype) - kv_bytes)
    return held if WORKSPACE_BYTES <= held <= MOST_WORKSPACE * found.gpu.memory else WORKSPACE_BYTES


def _origin(about: Mapping[str, Any]) -> tuple[Gpu, ModelShape, str]:
    """What a profile is of, if a roofline can tell about it; a :class:`CostError` names what it cannot."""
    hardware, model, dtype = (str(about.get(key) or "nothing") for key in ("hardware", "model", "dtype"))
    if int(about.get("tp") or 1) > 1:
        raise CostError(
            f"recorded on {about['tp']} GPUs: a roofline knows no traffic between them; record on one to project from"
        )
    gpu = gpu_of(hardware)
    if gpu is None:
        raise CostError(f"recorded on {hardware}, whose datasheet is not known (known: {', '.join(GPUS)})")
    shape = MODEL_SHAPES.get(model.removeprefix("shape:").rpartition("/")[2].lower())
    if shape is None:
        raise CostError(
            f"recorded with {model}, of whose shape a roofline knows nothing; record one of --list models, such as "
            f"shape:qwen-7b, to project from"
        )
    if DTYPE_BYTES.get(dtype) != _ELEMENT:
        raise CostError(f"recorded in {dtype}: datasheets are read for 16-bit products; record in bfloat16 or float16")
    return gpu, shape, dtype


def _shape(name: str) -> ModelShape:
    try:
        return model_shape(name)
    except UnknownShapeError as error:
        raise CostError(str(error)) from None
