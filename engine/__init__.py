"""A real engine: torch and transformers run the scheduler's step plans."""

from importlib.util import find_spec

from engine.errors import MissingExtraError

for _package in ("torch", "transformers"):
    if find_spec(_package) is None:
        raise MissingExtraError(_package)
