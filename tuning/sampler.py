"""Which setting to try next: Optuna's tree of Parzen estimators, and NSGA-II where there are several objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuning.errors import TuningError
from tuning.objectives import Objective
from tuning.setting import Value
from tuning.space import Knob, Space

#: random settings before the estimators have anything to go by
RANDOM = 20
POPULATION = 27


class Sampler:
    """Values of the free knobs, by what those before came to. The same calls in the same order give the same values."""

    def __init__(self, space: Space, objectives: Sequence[Objective], seed: int) -> None:
        try:
            import optuna
        except ImportError:
            raise TuningError("searching needs Optuna: pip install 'lockstep[tune]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._distributions = {knob.name: _distribution(optuna, knob) for knob in space.free}
        directions: Any = ["maximize"] * len(objectives)
        sampler: Any
        if len(objectives) == 1:
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM, constant_liar=True)
        else:
            sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)
        self._study = optuna.create_study(directions=directions, sampler=sampler)

    def ask(self) -> tuple[dict[str, Value | None], Any]:
        """Values to try, and what to hand back with what they came to."""
        trial = self._study.ask(self._distributions)
        return dict(trial.params), trial

    def tell(self, values: dict[str, Value | None], points: Sequence[float] | None, trial: Any) -> None:
        """What ``values`` came to, larger is better; ``None`` if they cannot be.

        ``trial`` is what :meth:`ask` gave with them, ``None`` if they were somebody else's idea.
        """
        states = self._optuna.trial.TrialState
        if trial is not None and points is None:
            self._study.tell(trial, state=states.FAIL)
        elif trial is not None:
            self._study.tell(trial, list(points or ()))
        elif points is not None:
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    params=values, distributions=self._distributions, values=list(points), state=states.COMPLETE
                )
            )

    def forget(self, trial: Any) -> None:
        """Take back what :meth:`ask` gave."""
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)


def _distribution(optuna: Any, knob: Knob) -> Any:
    distributions = optuna.distributions
    if knob.choices:
        return distributions.CategoricalDistribution(knob.choices)
    if knob.whole:
        return distributions.IntDistribution(int(knob.low), int(knob.high), log=knob.low > 0)
    return distributions.FloatDistribution(knob.low, knob.high, log=knob.low > 0)
