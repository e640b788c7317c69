"""Search by Optuna: each variant's learning rate and its gradient's own number, with one budget for all of them.

A trial is a variant with settings of its own, trained on the tuning seeds for as long as the reported trainings are;
what counts is the interquartile mean of its final test losses. Trials are trained in rounds, those of all variants as
one ensemble, and never on a seed that is reported.

Trials that are done are kept in Optuna's own journal in the study's directory. What is tried next follows from them
and from their number alone, so that a study that was stopped goes on to the trials that it would have had.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.studies.directory import StudyDirectory
from benchmarks.studies.spaces import Space, spaces
from benchmarks.studies.statistics import interquartile_mean
from benchmarks.studies.study import Study
from engine import SettingError
from engine.checks import whole
from training.errors import RunError
from training.variant import Variant

JOURNAL = "search.journal"
TRIALS = 16
_MEMBERS = 48  # of an ensemble; more are no faster
_ROUNDS = 4  # at least, so that later trials know of earlier ones
_RATE, _NUMBER = "learning_rate", "number"


def trials_with(tuner: str | None, trials: int | None) -> int:
    """How many trials a study has with this tuner, 0 without one; SettingError where it cannot search."""
    if tuner is None:
        if trials is not None:
            raise SettingError(f"Expected --tune optuna with --trials {trials}, got none; add it, or drop --trials.")
        return 0
    if tuner != "optuna":
        raise SettingError(f"Expected optuna to tune with, got {tuner!r}.")
    if importlib.util.find_spec("optuna") is None:
        raise SettingError("Expected the package optuna to tune with it, got none; pip install 'evenflow[optuna]'.")
    return whole("at least 1 trial", TRIALS if trials is None else trials)


def _shortest_horizon(study: Study) -> int:
    options = [study.experiment(difficulty, study.seeds[:1]).task_options for difficulty in study.difficulties]
    return min(one.build().horizon for one in options)


class Search:
    """The search of a study: what to train next, and what was chosen.

    Args:
        study: with its number of trials.
        out: its directory.

    Raises:
        RunError: a journal that cannot be read.
    """

    def __init__(self, study: Study, out: Path):
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._study, self._out = optuna, study, out
        self._spaces = spaces(study.gradients, study.clippings, study.learning_rates, _shortest_horizon(study))
        file = out / JOURNAL
        try:
            storage = JournalStorage(JournalFileBackend(str(file)))
            self._journals = {
                (difficulty, space): optuna.create_study(
                    storage=storage,
                    study_name=f"{study.difficulty} {difficulty}, {space.family}, clipping {space.given.clipping}",
                    load_if_exists=True,
                )
                for difficulty in study.difficulties
                for space in self._spaces
            }
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"Expected Optuna's trials in {file}, got something else; remove it, and they are made again from "
                "results.jsonl."
            ) from error

    def rounds(self) -> Iterator[tuple[int, dict[Any, tuple[Variant, ...]]]]:
        """The first trial's number, and at each difficulty variants to train on the tuning seeds, round by round.

        results.jsonl holds those of a round when the next one is asked for.
        """
        trials = self._study.trials
        together = max(1, min(trials // _ROUNDS, _MEMBERS // (len(self._spaces) * self._study.tuning_seed_count)))
        for first in range(0, trials, together):
            numbers = range(first, min(first + together, trials))
            if all(len(journal.get_trials(deepcopy=False)) > numbers[-1] for journal in self._journals.values()):
                continue
            asked = {key: [self._asked(*key, first, number) for number in numbers] for key in self._journals}
            yield (
                first,
                {
                    difficulty: tuple(dict.fromkeys(one for key in asked if key[0] == difficulty for one in asked[key]))
                    for difficulty in self._study.difficulties
                },
            )
            self._tell(asked, first)

    def chosen(self) -> dict[Any, tuple[Variant, ...]]:
        """At each difficulty every variant with the settings of its best trial, the earliest of equal ones.

        Where all have diverged, that is the first: as given.
        """
        found: dict[Any, tuple[Variant, ...]] = dict.fromkeys(self._study.difficulties, ())
        for (difficulty, space), journal in self._journals.items():
            best = min(journal.get_trials(deepcopy=False), key=lambda trial: (trial.value, trial.number))
            found[difficulty] += (Variant(best.user_attrs["gradient"], space.given.clipping, best.params[_RATE]),)
        return found

    def _asked(self, difficulty: Any, space: Space, first: int, number: int) -> Variant:
        """The variant of a trial, by the trials before `first` and by its number."""
        if number == 0:
            return space.given
        sampler = self._optuna.samplers.TPESampler(seed=number, n_startup_trials=max(2, self._study.trials // _ROUNDS))
        asking = self._optuna.create_study(sampler=sampler)
        asking.add_trials(self._journals[difficulty, space].get_trials()[:first])
        params = asking.ask(self._distributions(space)).params
        return space.variant(params[_RATE], params.get(_NUMBER))

    def _tell(self, asked: dict[tuple[Any, Space], list[Variant]], first: int) -> None:
        """Keep the trials of a round, whose trainings are done."""
        finals: dict[tuple[Any, Variant], list[float]] = {}
        for result in StudyDirectory(self._out).results:
            if result.phase == "tuning":
                finals.setdefault((result.difficulty, result.variant), []).append(result.final_loss)
        for (difficulty, space), variants in asked.items():
            journal = self._journals[difficulty, space]
            for variant in variants[len(journal.get_trials(deepcopy=False)) - first :]:
                number = space.number(variant)
                trial = self._optuna.trial.create_trial(
                    params={_RATE: variant.learning_rate} | ({} if number is None else {_NUMBER: number}),
                    distributions=self._distributions(space),
                    value=float(interquartile_mean(finals[difficulty, variant])),
                    user_attrs={"gradient": variant.gradient},
                )
                journal.add_trial(trial)

    def _distributions(self, space: Space) -> dict[str, Any]:
        of = self._optuna.distributions
        found = {_RATE: of.FloatDistribution(*space.rates, log=True)}
        if space.numbers is not None:
            low, high = space.numbers
            if space.whole:
                found[_NUMBER] = of.IntDistribution(int(low), int(high), log=low > 0)
            else:
                found[_NUMBER] = of.FloatDistribution(low, high, log=low > 0)
        return found
