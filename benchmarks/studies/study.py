"""Studies: every gradient × difficulty × clipping × learning rate × seed of a task, trained as ensembles.

A study is a directory. Members of one difficulty share a shape, so they train together in packs, each a run directory
of its own with a checkpoint after every epoch; a study that was killed continues where it stopped when the same
command is given again. Results are appended to `results.jsonl` when a pack is done, one line for each training, with
everything needed to repeat it.

Seeds are paired: equal seeds have equal data and initial weights whatever their variant. Where several learning rates
are given, each variant's is chosen on tuning seeds (1000 and up) that no report ever sees.
"""

import json
import math
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any

from engine import SettingError, current
from engine.checks import plain, whole
from training import Experiment, task_options
from training.provenance import with_plugins
from training.settings import COMPARED, Comparison, distinct
from training.tasks import difficulty_of
from training.variant import Variant

STUDY_FORMAT = 1
TUNING_SEED = 1000
KIND = "evenflow study"


COUNTS = {"seed_count": "seeds", "tuning_seed_count": "tuning_seeds"}
"""What study.yaml calls the counts of a study."""

LATER = {"tune_knobs": False, "trials": 0}
"""Settings that study.yaml says only where they are not these, as studies from before there were any do."""

SEEDS_BEFORE = "seeds_before"
"""What study.yaml says of a study that was given more seeds: how many it had when some of its results were known."""


@dataclass(frozen=True)
class Study(Comparison):
    """What is compared with what; what is crossed and for how long is a `Comparison`'s, given by name.

    Attributes:
        task: name; options: all but the difficulty.
        difficulties: values of the option that makes the task harder; the task's own by default.
        tune_knobs: whether of gradients that differ in their own number alone, as clip-norm(R, 1) and clip-norm(R, 10),
            only the one that is best on the tuning seeds is trained on the reported ones.
        trials: how many settings of each variant, learning rate and own number of its gradient, Optuna tries on the
            tuning seeds; 0 where nothing is searched. What is given are the ends of what is searched.
        seed_count: how many seeds are reported; tuning_seed_count: on how many others learning rates are chosen, where
            there are several.
    """

    task: str
    options: dict[str, Any] = field(default_factory=dict)
    difficulties: tuple[Any, ...] = ()
    _: KW_ONLY
    gradients: tuple[str, ...] = COMPARED
    seed_count: int = 10
    tuning_seed_count: int = 3
    tune_knobs: bool = False
    trials: int = 0

    def __post_init__(self):
        super().__post_init__()
        kind = task_options(self.task)
        for name, wanted in COUNTS.items():
            one = wanted.replace("_", " ").removesuffix("s")
            object.__setattr__(self, name, whole(f"at least 1 {one}", getattr(self, name)))
        object.__setattr__(self, "trials", whole("at least 0 trials", self.trials, least=0))
        if self.trials and self.tune_knobs:
            raise SettingError("Expected trials or tune_knobs, which both choose a gradient's own number, got both.")
        if self.seed_count > TUNING_SEED:
            raise SettingError(
                f"Expected at most {TUNING_SEED} seeds, where those for tuning begin, got {self.seed_count}."
            )
        difficulties = self.difficulties or difficulty_of(kind)[1]
        object.__setattr__(self, "difficulties", distinct("difficulties", [plain(value) for value in difficulties]))
        if self.difficulty in self.options:
            raise SettingError(f"Expected {self.difficulty} as a difficulty, got it as an option too.")
        for value in self.difficulties:
            checked = self.experiment(value, self.seeds[:1])  # every setting is checked before anything is trained
            checked.task_options.build()
            checked.members()

    @classmethod
    def of(cls, task: str, options: dict[str, Any], difficulties: tuple[float, ...], **settings: Any) -> "Study":
        """A study from all options of a task and difficulties as plain numbers."""
        name = difficulty_of(task_options(task))[0]
        default = getattr(task_options(task)(), name)
        given = options.pop(name, default)
        if given != default:
            raise SettingError(
                f"Expected values of {name} as difficulties, got the option {name} = {given}; write --difficulties "
                f"{given}."
            )
        values = []
        for value in difficulties:
            if not math.isfinite(value) or type(default)(value) != value:
                raise SettingError(f"Expected {name} as {type(default).__name__}, got {value}.")
            values.append(type(default)(value))
        return cls(task, options, tuple(values), **settings)

    @property
    def difficulty(self) -> str:
        """Name of the option that makes the task harder."""
        return difficulty_of(task_options(self.task))[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that are reported."""
        return tuple(range(self.seed_count))

    @property
    def tuning_seeds(self) -> tuple[int, ...]:
        """The seeds on which learning rates are chosen."""
        return tuple(range(TUNING_SEED, TUNING_SEED + self.tuning_seed_count))

    @property
    def tunes(self) -> bool:
        """Whether anything is chosen on the tuning seeds."""
        return len(self.learning_rates) > 1 or self.tune_knobs

    @property
    def milestones(self) -> tuple[int, ...]:
        """Epochs whose weights are kept for diagnostics: the start, a tenth, a half, the end."""
        return tuple(sorted({0, max(1, self.epochs // 10), max(1, self.epochs // 2), self.epochs}))

    def experiment(self, difficulty: Any, seeds: tuple[int, ...], variants: tuple[Variant, ...] = ()) -> Experiment:
        """The trainings of one difficulty with these seeds; those of some variants alone, where they are given."""
        return Experiment(
            self.task,
            {**self.options, self.difficulty: difficulty},
            seeds=seeds,
            checkpoint_every=1,
            variants=variants,
            milestones=self.milestones,
            **self.shared(),
        )

    def to_config(self) -> dict[str, Any]:
        """Plain values, with the runtime: what a study's directory is known by and says."""
        runtime = current()
        plain_values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        values = {COUNTS.get(name, name): value for name, value in plain_values.items()}
        values = {name: value for name, value in values.items() if LATER.get(name, ...) != value}
        first = {name: values[name] for name in ("task", "options", "difficulties")}
        where = {"backend": runtime.backend, "precision": runtime.precision}
        return with_plugins({"kind": KIND, "format": STUDY_FORMAT, "runtime": where, **first, **values})
