"""A setting: flags and their values, beside those that every candidate has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Value = int | float | str


@dataclass(frozen=True)
class Setting:
    """Flags by name, as in YAML, each with its value; what is not named is the policy's or the command's own."""

    flags: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Value] | Iterable[tuple[str, Value]]) -> Setting:
        """From a mapping, in its order."""
        return cls(tuple(dict(values).items()))

    @property
    def values(self) -> dict[str, Value]:
        return dict(self.flags)

    @property
    def key(self) -> str:
        """The same text for the same setting, in whatever order its flags are."""
        return json.dumps(self.values, sort_keys=True)

    @property
    def policy(self) -> str:
        return str(self.values.get("policy", "fcfs"))

    def without(self, name: str) -> Setting:
        """The setting with the command's own value of ``name``."""
        return Setting(tuple((flag, value) for flag, value in self.flags if flag != name))

    def replaced(self, name: str, value: Value | None) -> Setting:
        """The setting with another value of ``name``, in its place; ``None`` leaves it out."""
        if value is None:
            return self.without(name)
        if name not in self.values:
            return Setting((*self.flags, (name, value)))
        return Setting(tuple((flag, value if flag == name else old) for flag, old in self.flags))

    def __str__(self) -> str:
        rest = [f"{name.replace('_', '-')} {value}" for name, value in self.flags if name != "policy"]
        return ", ".join([self.policy, *rest])
