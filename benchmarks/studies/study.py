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
from dataclasses import asdict, dataclass, field
from typing import Any

from engine import SettingError, current
from engine.checks import plain, whole
from training import Experiment, TrainingSettings, task_options
from training.provenance import with_plugins
from training.tasks import difficulty_of
from training.variant import Variant

FORMAT = 1
TUNING_SEED = 1000
KIND = "evenflow study"


@dataclass(frozen=True)
class Study:
    """What is compared with what.

    Attributes:
        task: name; options: all but the difficulty.
        difficulties: values of the option that makes the task harder; the task's own by default.
        gradients, clippings, learning_rates: what is crossed.
        seeds: reported seeds, 0 and up; tuning_seeds: for choosing learning rates where there are several.
        epochs: of every training.
        settings: shared by all.
    """

    task: str
    options: dict[str, Any] = field(default_factory=dict)
    difficulties: tuple[Any, ...] = ()
    gradients: tuple[str, ...] = ("R", "M", "S", "C")
    clippings: tuple[str, ...] = ("none",)
    learning_rates: tuple[float, ...] = (1e-3,)
    seeds: int = 10
    tuning_seeds: int = 3
    epochs: int = 100
    settings: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self):
        kind = task_options(self.task)
        for name in ("seeds", "tuning_seeds"):
            object.__setattr__(self, name, whole(f"at least 1 of {name.replace('_', ' ')}", getattr(self, name)))
        if self.seeds > TUNING_SEED:
            raise SettingError(f"Expected at most {TUNING_SEED} seeds, where those for tuning begin, got {self.seeds}.")
        if not self.difficulties:
            object.__setattr__(self, "difficulties", tuple(difficulty_of(kind)[1]))
        object.__setattr__(self, "difficulties", tuple(plain(value) for value in self.difficulties))
        if len(set(self.difficulties)) < len(self.difficulties):
            raise SettingError(f"Expected difficulties without repetition, got {list(self.difficulties)}.")
        if self.difficulty in self.options:
            raise SettingError(f"Expected {self.difficulty} as a difficulty, got it as an option too.")
        for value in self.difficulties:
            checked = self.experiment(value, range(1))  # every setting is checked before anything is trained
            checked.task_options.build()
            checked.members()
            object.__setattr__(self, "gradients", checked.gradients)
            object.__setattr__(self, "clippings", checked.clippings)

    @classmethod
    def of(cls, task: str, options: dict[str, Any], difficulties: tuple[float, ...], **settings: Any) -> "Study":
        """A study from all options of a task and difficulties as plain numbers."""
        name = difficulty_of(task_options(task))[0]
        default = getattr(task_options(task)(), name)
        given = options.pop(name, default)
        if given != default:
            raise SettingError(f"Expected values of {name} as difficulties, got the option {name} = {given}.")
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
    def milestones(self) -> tuple[int, ...]:
        """Epochs whose weights are kept for diagnostics: the start, a tenth, a half, the end."""
        return tuple(sorted({0, max(1, self.epochs // 10), max(1, self.epochs // 2), self.epochs}))

    def experiment(self, difficulty: Any, seeds: range, variants: tuple[Variant, ...] = ()) -> Experiment:
        return Experiment(
            task=self.task,
            options={**self.options, self.difficulty: difficulty},
            gradients=self.gradients,
            seeds=tuple(seeds),
            learning_rates=self.learning_rates,
            clippings=self.clippings,
            epochs=self.epochs,
            checkpoint_every=1,
            variants=variants,
            milestones=self.milestones,
            settings=self.settings,
        )

    def to_config(self) -> dict[str, Any]:
        """Plain values, with the runtime: what a study's directory is known by and says."""
        runtime = current()
        values = json.loads(json.dumps(asdict(self)))
        where = {"backend": runtime.backend, "precision": runtime.precision}
        return with_plugins({"kind": KIND, "format": FORMAT, "runtime": where, **values})
