"""A policy in a Python file of the user's."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, isclass, isfunction, signature
from types import ModuleType
from typing import Any

from scheduler.config import SchedulerConfig
from scheduler.errors import ConfigError, unknown_name
from scheduler.policies import POLICY_SETTINGS
from scheduler.policy import Order, Policy
from scheduler.user_policies.files import PolicyFile
from scheduler.user_policies.guard import Guard, described
from scheduler.user_policies.promises import check_policy

HOW = (
    "write an Order (it orders who waits), a Policy, or a function that takes the settings and returns a Policy; "
    "docs/policies.md has an example"
)


class ReadSettings(SchedulerConfig):
    """Settings that remember which of them were looked at."""

    @classmethod
    def of(cls, config: SchedulerConfig) -> ReadSettings:
        """Those of ``config``, none looked at yet."""
        settings = object.__new__(cls)
        settings.__dict__.update(vars(config), _looked_at=set())
        return settings

    def __getattribute__(self, name: str) -> Any:
        if name in POLICY_SETTINGS:
            self.__dict__["_looked_at"].add(name)
        return super().__getattribute__(name)

    @property
    def looked_at(self) -> frozenset[str]:
        """Their names."""
        return frozenset(self.__dict__["_looked_at"])


class PythonPolicy:
    """``mine.py:NAME``: NAME is a Policy, an Order, a class derived from Order, or a function of the settings.

    The file is run anew for each scheduler, so that two of them share nothing that it keeps.
    """

    #: it may ask the oracle: that cannot be seen from outside
    predicts = True
    summary = ""

    def __init__(self, file: PolicyFile) -> None:
        self._file = file
        self.name = file.name

    def takes(self, config: SchedulerConfig) -> frozenset[str]:
        """The settings, of those that only some policies take, that the file looks at."""
        return self._built(config)[1]

    def settled(self, config: SchedulerConfig) -> SchedulerConfig:
        """``config`` with the file's SHA-256."""
        return replace(config, policy_sha256=self._file.sha256)

    def build(self, config: SchedulerConfig) -> Policy:
        """The policy as the file has it. A setting that it does not look at is a :class:`ConfigError`."""
        policy, taken = self._built(config)
        for setting in POLICY_SETTINGS:
            if setting != "oracle" and getattr(config, setting) is not None and setting not in taken:
                raise ConfigError(f"policy {config.policy} takes no {setting}: nothing in the file looks at it")
        return policy

    def guarded(self, policy: Policy) -> Policy:
        """``policy`` with its parts watched; see :mod:`scheduler.user_policies.guard`."""
        return Guard(policy.name, self._file.path).policy(policy)

    def _built(self, config: SchedulerConfig) -> tuple[Policy, frozenset[str]]:
        module = self._run()
        found = self._named(module)
        read = ReadSettings.of(config)
        if not isinstance(found, (Policy, Order)):
            try:
                found = found() if isclass(found) and issubclass(found, Order) else found(read)
            except ConfigError:
                raise
            except (Exception, SystemExit) as error:
                raise ConfigError(f"policy {self._file.policy}: {described(error, self._file.path)}") from error
        if isinstance(found, Order):
            found = Policy(self._file.name, waiting=found)
        if not isinstance(found, Policy):
            raise ConfigError(f"policy {self._file.policy}: {self._file.name} gave {found!r}, which is no Policy")
        # a class of the user's may be made in a way of its own; parts of a Policy are replaced
        policy = Policy(**{field.name: getattr(found, field.name) for field in fields(Policy)})
        check_policy(policy, self._file.policy)
        return policy, read.looked_at

    def _run(self) -> ModuleType:
        """The file as a module of its own: what was hashed is what is run."""
        file = self._file
        name = f"lockstep_policy_{file.sha256[:16]}"
        spec = spec_from_file_location(name, file.path)
        if spec is None:
            raise ConfigError(f"policy {file.policy}: {file.path} is no Python file")
        module = module_from_spec(spec)
        # dataclasses, for one, look their module up there
        sys.modules[name] = module
        try:
            exec(compile(file.source, str(file.path), "exec"), module.__dict__)
        except SyntaxError as error:
            raise ConfigError(f"policy {file.policy}, line {error.lineno}: {error.msg}") from error
        except (Exception, SystemExit) as error:
            raise ConfigError(f"policy {file.policy}: {described(error, file.path)}") from error
        return module

    def _named(self, module: ModuleType) -> Any:
        file = self._file
        fit = [name for name, value in vars(module).items() if not name.startswith("_") and _fits(value, module)]
        if not fit:
            raise ConfigError(f"policy {file.policy}: nothing in {file.path} is a policy; {HOW}")
        names = f"names in it that fit: {', '.join(fit)}"
        if not file.name:
            raise ConfigError(f"policy {file.policy} does not say which policy of the file; add :{fit[0]} ({names})")
        if not hasattr(module, file.name):
            raise ConfigError(f"policy {file.policy}: {unknown_name('name', file.name, fit)}")
        found = getattr(module, file.name)
        if not (isinstance(found, (Policy, Order)) or callable(found)):
            raise ConfigError(f"policy {file.policy}: {file.name} is {found!r}, which is no policy ({names})")
        return found


def _fits(value: Any, module: ModuleType) -> bool:
    """Whether a name's value can be a policy, and was made in the file."""
    if isinstance(value, (Policy, Order)):
        return True
    if getattr(value, "__module__", None) != module.__name__:
        return False
    if isclass(value):
        return issubclass(value, (Policy, Order))
    if not isfunction(value):
        return False
    required = [p for p in signature(value).parameters.values() if p.default is Parameter.empty]
    return len(required) == 1 and required[0].kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
