"""The server's command line: the scheduling flags of ``bench.py``, and what is HTTP's."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.arguments import (
    DEFAULT_MAX_RUNNING,
    ArgumentParser,
    UsageError,
    add_scheduling_flags,
    config_flags,
    flag_of,
    number,
    one_of,
    scheduler_settings,
)
from engine.loop import DEFAULT_POLICY
from scheduler.config import SchedulerConfig
from scheduler.scheduler import Scheduler
from serving.logs import FORMATS
from serving.messages import EngineSettings
from serving.server import ServerSettings

#: the environment's API key, which does not show among the processes
KEY_VARIABLE = "LOCKSTEP_API_KEY"
DEFAULT_PORT = 8000
MOST_PORT = 65535
#: flags that an emulated engine has no use for
_OF_MODELS = ("model", "dtype", "device", "tp", "gpu_memory_utilization")


@dataclass(frozen=True)
class Command:
    """What is to be served, and where."""

    host: str
    port: int
    settings: ServerSettings
    log_format: str


def build_parser() -> ArgumentParser:
    """The parser of ``api_server.py``."""
    seconds = number(float, 0, exclusive=True)
    parser = ArgumentParser(
        prog="api_server.py",
        allow_abbrev=False,
        description="Serve a model by HTTP, as OpenAI does. Without arguments: the embedded model at 127.0.0.1:8000.",
    )
    group = parser.add_argument_group("HTTP")
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0 is all (default 127.0.0.1)")
    group.add_argument("--port", type=_port, default=DEFAULT_PORT, metavar="N", help=f"default {DEFAULT_PORT}; 0: any")
    group.add_argument("--served-model-name", type=_names, action="extend", metavar="NAME[,NAME]",
                       help="what clients call the model (default: as --model does)")  # fmt: skip
    group.add_argument("--api-key", type=_names, action="extend", metavar="KEY",
                       help=f"clients must have one of them; also from ${KEY_VARIABLE}")  # fmt: skip
    group.add_argument("--cors-origin", type=_names, action="extend", metavar="ORIGIN",
                       help="pages from there may ask; * for all (default: none)")  # fmt: skip
    group.add_argument("--max-queue", type=number(int, 0), default=ServerSettings.max_queue, metavar="N",
                       help=f"beyond --max-running, before 503 (default {ServerSettings.max_queue})")  # fmt: skip
    group.add_argument("--max-body-bytes", type=number(int, 1), default=ServerSettings.max_body_bytes, metavar="N",
                       help=f"of a request (default {ServerSettings.max_body_bytes})")  # fmt: skip
    group.add_argument("--request-timeout-s", type=seconds, metavar="S", help="of any request (default: none)")
    group.add_argument("--drain-s", type=number(float, 0), default=ServerSettings.drain_s, metavar="S",
                       help=f"for running requests after SIGTERM (default {ServerSettings.drain_s:g})")  # fmt: skip
    group.add_argument("--log-format", type=one_of("log format", FORMATS), default="text", metavar="NAME",
                       help="of the lines on standard error: text (default) or json")  # fmt: skip
    group.add_argument("--log-prompts", action="store_true", help="have prompts and outputs in the log")
    group.add_argument("--config", type=Path, metavar="FILE", help="YAML of flags; those on the command line win")
    add_scheduling_flags(parser)
    parser.add_argument("--no-overlap", dest="overlap", action="store_false", help="no step is planned while one runs")
    parser.set_defaults(overlap=True)
    group = parser.add_argument_group("an emulated engine, for trying clients and policies without a GPU")
    group.add_argument("--emulate", metavar="COSTS",
                       help="steps take what these costs say, words are made up (bench.py --list costs)")  # fmt: skip
    group.add_argument("--tokenizer", metavar="NAME", help="whose words they are (default: the embedded model's)")
    return parser


def parse_command(argv: Sequence[str], environment: Mapping[str, str]) -> Command:
    """What a command line asks for.

    Raises :class:`~core.arguments.UsageError`, :class:`~scheduler.errors.ConfigError` or
    :class:`~scheduler.errors.PolicyError`, each with one line.
    """
    parser = build_parser()
    args = parser.parse(argv)
    if args.config is not None:
        args = parser.parse([*config_flags(args.config), *argv])
    _check_emulation(parser, args)
    keys = [*(args.api_key or ()), *([environment[KEY_VARIABLE]] if environment.get(KEY_VARIABLE) else ())]
    settings = ServerSettings(
        engine=EngineSettings(
            model=args.model,
            emulate=args.emulate,
            tokenizer=args.tokenizer,
            dtype=args.dtype,
            device=args.device,
            tp=args.tp,
            gpu_memory_utilization=args.gpu_memory_utilization or EngineSettings.gpu_memory_utilization,
            scheduler=_scheduler(args),
        ),
        served_names=tuple(args.served_model_name or ()),
        max_queue=args.max_queue,
        drain_s=args.drain_s,
        request_timeout_s=args.request_timeout_s,
        max_body_bytes=args.max_body_bytes,
        api_keys=tuple(keys),
        cors_origins=tuple(args.cors_origin or ()),
        log_prompts=args.log_prompts,
    )
    return Command(args.host, args.port, settings, args.log_format)


def _check_emulation(parser: ArgumentParser, args: argparse.Namespace) -> None:
    if args.emulate is None:
        if args.tokenizer is not None:
            raise UsageError("--tokenizer is for --emulate: a model comes with its own; leave it out")
        return
    for name in _OF_MODELS:
        if getattr(args, name) != parser.get_default(name):
            raise UsageError(f"{flag_of(name)} has no effect with --emulate, which loads no model; leave it out")


def _scheduler(args: argparse.Namespace) -> dict[str, object]:
    """The scheduler's settings, found possible."""
    args.max_running = args.max_running or DEFAULT_MAX_RUNNING
    args.policy = args.policy or DEFAULT_POLICY
    settings = scheduler_settings(args)
    Scheduler(SchedulerConfig.from_dict(settings))
    return settings


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return names


def _port(text: str) -> int:
    port = int(number(int, 0)(text))
    if port > MOST_PORT:
        raise argparse.ArgumentTypeError(f"{text} is out of range; must be <= {MOST_PORT}")
    return port
