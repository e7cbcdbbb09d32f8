"""Policies of the user's own: described in a YAML file, or written in a Python file.

``policy`` is then the file's path, with ``:NAME`` after that of a Python file. How to write one: ``docs/policies.md``.
"""

from __future__ import annotations

from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError
from scheduler.user_policies.description import PolicyDescription
from scheduler.user_policies.files import is_policy_file, policy_path, read_policy_file
from scheduler.user_policies.python_file import PythonPolicy

__all__ = ["PolicyDescription", "PythonPolicy", "is_policy_file", "open_user_policy", "policy_path"]

UserPolicy = PolicyDescription | PythonPolicy


def open_user_policy(config: SchedulerConfig) -> UserPolicy | None:
    """The policy in the file that ``config`` names; ``None`` where it names a built-in one.

    Raises :class:`~scheduler.errors.ConfigError` for a file that cannot be read or understood, and for one that is not
    the file of ``config.policy_sha256``.
    """
    if not is_policy_file(config.policy):
        if config.policy_sha256 is not None:
            raise ConfigError(f"policy_sha256 is that of a policy's file, and policy {config.policy} is none")
        return None
    file = read_policy_file(config.policy)
    if config.policy_sha256 not in (None, file.sha256):
        raise ConfigError(
            f"policy {config.policy}: {file.path} has changed since this was recorded (its SHA-256 begins with "
            f"{file.sha256[:12]}, the recorded one with {str(config.policy_sha256)[:12]}); restore the file"
        )
    return PythonPolicy(file) if file.is_python else PolicyDescription(file)
