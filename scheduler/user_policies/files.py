"""Files that hold a policy, as the setting ``policy`` names them."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from scheduler.errors import ConfigError

PYTHON = ".py"
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class PolicyFile:
    """A file that was read, once: what is hashed is what is run."""

    policy: str
    """as the setting has it"""
    path: Path
    name: str
    """what comes after the colon; empty where nothing does"""
    source: bytes

    @property
    def sha256(self) -> str:
        """Of the source, in hexadecimal digits."""
        return sha256(self.source).hexdigest()

    @property
    def is_python(self) -> bool:
        return self.path.suffix == PYTHON


def is_policy_file(policy: str) -> bool:
    """Whether a policy is named by a file: ``mine.yaml`` or ``mine.py:NAME``."""
    return policy_path(policy).suffix in (PYTHON, *YAML)


def policy_path(policy: str) -> Path:
    """The path in ``mine.yaml`` or ``mine.py:NAME``."""
    return Path(_split(policy)[0])


def _split(policy: str) -> tuple[str, str]:
    path, colon, name = policy.rpartition(":")
    return (path, name) if colon and path.endswith(PYTHON) else (policy, "")


def read_policy_file(policy: str) -> PolicyFile:
    """Read the file that ``policy`` names. Raises :class:`~scheduler.errors.ConfigError`."""
    text, name = _split(policy)
    path = Path(text)
    try:
        source = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"policy {policy}: no such file as {path}") from None
    except OSError as error:
        raise ConfigError(f"policy {policy}: {path} cannot be read: {error.strerror or error}") from error
    return PolicyFile(policy, path, name, source)
