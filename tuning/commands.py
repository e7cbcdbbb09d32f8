"""The commands that a setting is used with, and the files that say the same."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from core.arguments import DEFAULT_BLOCK_TOKENS, DEFAULT_MAX_RUNNING, build_parser, flag_of
from core.runs import with_edges
from scheduler.buckets import equal_mass_buckets
from scheduler.graphs import Graphs
from simulator.costs import CostModel
from simulator.recorded import RecordedCosts
from tuning.setting import Setting
from tuning.space import AUTOSCALER, SCALING, Space
from workloads.workload import Workload

#: files of a tuning's folder
BENCH_FILE, SERVE_FILE, AUTOSCALE_FILE = "bench.yaml", "serve.yaml", "autoscale.yaml"
#: flags of a workload and of the engine that commands repeat
_WORKLOAD = ("workload", "trace_format", "requests", "rate", "arrivals", "time_scale", "seed")
_ENGINE = ("model", "device", "dtype", "gpu_memory_utilization", "tp")
_LIMITS = ("layout", "max_running", "max_prefill_tokens", "kv_pool", "kv_tokens", "block_tokens", "max_rows",
           *Graphs._fields)  # fmt: skip


@dataclass(frozen=True)
class Commands:
    """What to run: in the simulator, on the engine, as a server; each also with the files of the folder."""

    simulate: str
    run: str
    serve: str
    bench_yaml: dict[str, Any]
    serve_yaml: dict[str, Any]
    autoscale_yaml: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def commands_for(
    setting: Setting, space: Space, args: argparse.Namespace, workload: Workload, costs: CostModel, folder: str
) -> Commands:
    """The commands for ``setting``. Buckets of equal mass become the edges that ``workload`` gives, since nobody else
    has it; ``folder`` has the files."""
    flags = scheduling_flags(setting, space, args, workload)
    played = _flags(args, _WORKLOAD)
    engine = _flags(args, _ENGINE)
    model = args.model or (str(costs.about.get("model", "")) if isinstance(costs, RecordedCosts) else "")
    if model and args.model is None:
        engine = {"model": model, **engine}
    slo = {"slo": args.slo} if args.slo else {}
    scaling = space.scaling(setting)
    cluster: dict[str, Any] = {}
    autoscale = None
    if scaling is not None:
        autoscale = {name: value for name, value in vars(scaling).items() if value is not None}
        cluster = {"autoscale": f"{folder}/{AUTOSCALE_FILE}"}
    elif isinstance(replicas := setting.values.get("replicas", args.replicas), int) and replicas > 1:
        cluster = {"replicas": replicas}
        autoscale = {"min_replicas": replicas, "max_replicas": replicas}
    router = {"router": setting.values["router"]} if "router" in setting.values and cluster else {}
    simulated = {"costs": args.costs} if args.costs else {"replica_costs": ",".join(args.replica_costs or ())}
    varied = {"jitter": True} if args.jitter and not cluster else {}
    forced = {"force": True} if args.force else {}
    simulate = {**played, **simulated, **varied, **forced, **slo, **cluster, **router, **flags}
    serve = {**engine, **{name: value for name, value in flags.items() if name != "overlap"}}
    if not flags.get("overlap"):
        serve["no_overlap"] = True
    program = "python api_server.py"
    if autoscale is not None:
        program = f"python deploy/ray_serve.py --autoscale {folder}/{AUTOSCALE_FILE}" + _text(router)
    return Commands(
        simulate="python bench.py --mode sim" + _text(simulate),
        run="python bench.py --mode real" + _text({**played, **engine, **slo, **flags}),
        serve=program + _text(serve),
        bench_yaml=_yaml_of(flags),
        serve_yaml=_yaml_of({name: value for name, value in serve.items() if name not in _ENGINE}),
        autoscale_yaml=autoscale,
    )


def scheduling_flags(
    setting: Setting, space: Space, args: argparse.Namespace, workload: Workload
) -> dict[str, Any]:  # fmt: skip
    """The flags of the scheduler: those of the setting, and those that the command has for all."""
    own = {name: value for name, value in setting.flags
           if name not in ("replicas", "router", SCALING) and not name.startswith(AUTOSCALER)}  # fmt: skip
    if "bucket" in own and equal_mass_buckets(str(own["bucket"])) is not None:
        own["bucket"] = with_edges(space.arguments(setting), workload).bucket
    common = _flags(args, _LIMITS)
    if common.get("block_tokens") == DEFAULT_BLOCK_TOKENS:
        del common["block_tokens"]
    limit = {} if "max_running" in own or "max_running" in common else {
        "max_running": workload.max_running or DEFAULT_MAX_RUNNING
    }  # fmt: skip
    return {"policy": setting.policy, **own, **common, **limit}


def _flags(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of ``names`` that are not as they are by themselves."""
    parser = build_parser()
    return {
        name: value
        for name in names
        if (value := getattr(args, name)) != parser.get_default(name) and value is not None
    }


def _text(flags: Mapping[str, Any]) -> str:
    words = []
    for name, value in flags.items():
        if value is True:
            words.append(flag_of(name))
        elif value is not False:
            words += [flag_of(name), _value(value)]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _yaml_of(flags: Mapping[str, Any]) -> dict[str, Any]:
    found = {name.replace("_", "-"): value for name, value in flags.items()}
    return {name: _value(value) if isinstance(value, list | tuple) else value for name, value in found.items()}


def as_yaml(flags: Mapping[str, Any]) -> str:
    """For a file."""
    return yaml.safe_dump(dict(flags), sort_keys=False)
