"""Serve a model by HTTP, as OpenAI does.

``python api_server.py`` serves the embedded model at http://127.0.0.1:8000; ``--help`` lists the flags.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from logging.config import dictConfig

from core.arguments import UsageError
from engine.errors import EngineError, MissingExtraError
from scheduler.errors import ConfigError, PolicyError
from serving.arguments import parse_command
from serving.logs import logging_config, say
from serving.run import PortError, open_port, run

USAGE, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Serve. Returns 0 after a signal, 1 if the engine ended by itself, 2 if it could not be started."""
    try:
        command = parse_command(sys.argv[1:] if argv is None else argv, os.environ)
        dictConfig(logging_config(command.log_format))
        with open_port(command.host, command.port) as port:
            return run(command.settings, port)
    except (KeyboardInterrupt, asyncio.CancelledError):  # before it was ready
        return INTERRUPTED
    except (UsageError, ConfigError, PolicyError, PortError, EngineError, MissingExtraError) as error:
        say(f"api_server.py: error: {error}")
        return USAGE


if __name__ == "__main__":
    sys.exit(main())
