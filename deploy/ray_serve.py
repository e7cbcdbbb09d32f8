"""The server on many machines: replicas behind one address on Ray Serve, as many as the load asks for.

    python deploy/ray_serve.py --autoscale deploy/autoscale.yaml --router prefix-affinity --prefix-cache

All flags of api_server.py hold for each replica. The autoscaler's settings and the routers are those of
``bench.py --mode sim``, which tells beforehand what they come to. ``serve run deploy.ray_serve:app FLAG=VALUE ...``
takes the same flags, but for the address.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# this folder has no packages of ours
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from core.arguments import UsageError
from engine.errors import MissingExtraError
from engine.processes import search_path
from reports.slo import Slo, SloError
from scheduler.errors import ConfigError, PolicyError
from serving.arguments import Command, parse_command
from serving.cluster.routing import ROUTER_NAMES
from simulator.cluster.autoscaler import AutoscaleSettings, read_autoscale
from simulator.cluster.errors import ClusterError

if TYPE_CHECKING:
    from ray.serve import Application

    from serving.cluster.ray_app import ClusterSettings
    from serving.server import ServerSettings

NAME = "lockstep"
FAILED, USAGE = 1, 2
_MISTAKES = (UsageError, ConfigError, PolicyError, ClusterError, SloError, MissingExtraError)


def build_parser() -> argparse.ArgumentParser:
    """The parser of what is the cluster's; all other flags are those of ``api_server.py``."""
    parser = argparse.ArgumentParser(
        prog="ray_serve.py", allow_abbrev=False, description=__doc__, epilog="And all flags of api_server.py.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--autoscale", type=Path, metavar="FILE.yaml",
                        help="how many replicas there are (default: one; see docs/cluster.md)")  # fmt: skip
    parser.add_argument("--router", default="round-robin", metavar="NAME",
                        help="; ".join(ROUTER_NAMES) + " (default round-robin)")  # fmt: skip
    parser.add_argument("--slo", metavar="NAME=MS,...", help="objectives, for an autoscaler that goes by them")
    parser.add_argument("--replica-cpus", type=float, default=1.0, metavar="N",
                        help="cores that Ray reserves for a replica (default 1)")  # fmt: skip
    parser.add_argument("--replica-gpus", type=float, metavar="N",
                        help="GPUs that Ray reserves (default: --tp with --device cuda, else 0)")  # fmt: skip
    parser.add_argument("--ray-address", metavar="ADDRESS",
                        help="a Ray cluster that runs (default: $RAY_ADDRESS, else one of this machine)")  # fmt: skip
    parser.add_argument("--ray-cpus", type=int, metavar="N",
                        help="cores that a cluster of this machine hands out (default: all there are)")  # fmt: skip
    return parser


def cluster_settings(args: argparse.Namespace, server: ServerSettings) -> ClusterSettings:
    """What the cluster's flags ask for. Raises one of :data:`_MISTAKES`."""
    try:
        from serving.cluster.ray_app import ClusterSettings
    except ModuleNotFoundError as error:
        raise MissingExtraError("Ray Serve is not installed: pip install 'lockstep[cluster]'") from error

    engine = server.engine
    gpus = args.replica_gpus
    if gpus is None:
        gpus = float(engine.tp) if (engine.device or "").startswith("cuda") else 0.0
    return ClusterSettings(
        server,
        AutoscaleSettings() if args.autoscale is None else read_autoscale(args.autoscale),
        args.router,
        None if args.slo is None else Slo.parse(args.slo),
        args.replica_cpus,
        gpus,
    )


def app(args: Mapping[str, Any]) -> Application:
    """For ``serve run deploy.ray_serve:app`` and a RayService: flags by name, ``true`` for one without a value."""
    return app_of([part for name, value in args.items() for part in _flag(name, value)], os.environ)


def app_of(argv: Sequence[str], environment: Mapping[str, str]) -> Application:
    """What a command line asks for. Raises one of :data:`_MISTAKES`."""
    parsed, rest = build_parser().parse_known_args(argv)
    return _app(parsed, parse_command(rest, environment).settings)


def _app(args: argparse.Namespace, server: ServerSettings) -> Application:
    settings = cluster_settings(args, server)
    from serving.cluster.ray_app import build

    return build(settings)


def _flag(name: str, value: object) -> list[str]:
    flag = "--" + name.replace("_", "-")
    return [flag] if value is True or value == "true" else [flag, str(value)]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal. Returns 0 after one, 1 where no replica can be started, 2 for a mistake in the flags."""
    parsed, rest = build_parser().parse_known_args(argv)
    try:
        command = parse_command(rest, os.environ)
        application = _app(parsed, command.settings)
    except _MISTAKES as error:
        print(f"ray_serve.py: error: {error}", file=sys.stderr)
        return USAGE
    return _serve(application, command, parsed.ray_address, parsed.ray_cpus)


def start(application: Application, host: str, port: int, address: str | None = None, cpus: int | None = None) -> None:
    """Start the application and wait until it is there; ``address`` and ``cpus`` as ``ray.init`` takes them.

    Raises ``RuntimeError`` where no replica can be started.
    """
    import ray
    from ray import serve

    # what a worker of Ray imports is what this process imports
    environment = {"env_vars": {"PYTHONPATH": search_path()}}
    ray.init(address, num_cpus=cpus, include_dashboard=False, runtime_env=environment)
    serve.start(http_options={"host": host, "port": port})
    serve.run(application, name=NAME)


def stop() -> None:
    """End the application, and the cluster if it was started with it."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


def _serve(application: Application, command: Command, address: str | None, cpus: int | None) -> int:
    stopping = threading.Event()
    try:
        start(application, command.host, command.port, address, cpus)
        print(f"lockstep: serving at http://{command.host}:{command.port}", file=sys.stderr, flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopping.set())
        while not stopping.wait(0.5):  # a signal may come to a thread of Ray's, which wakes nobody
            pass
    except RuntimeError as error:
        print(f"ray_serve.py: error: {_reason(_account() or str(error))}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        pass
    finally:
        stop()
    return 0


def _account() -> str:
    """What Ray Serve has to say of a deployment that failed, if anything."""
    from ray import serve

    found = serve.status().applications.get(NAME)
    return "" if found is None else "\n".join(deployment.message for deployment in found.deployments.values())


def _reason(message: str) -> str:
    """What went wrong: the last line of the traceback in ``message``, or all of it."""
    lines = [line for line in message.splitlines() if "Error: " in line]
    return lines[-1].rpartition("Error: ")[2] if lines else message


if __name__ == "__main__":
    sys.exit(main())
