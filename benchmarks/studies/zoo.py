"""Many gradients on every task: a study for each task in one resumable directory, and one figure of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.studies.comparisons import AGAINST
from benchmarks.studies.directory import StudyDirectory, check_holds
from benchmarks.studies.matrix import write_matrix
from benchmarks.studies.sizing import seconds_of_a_seed
from benchmarks.studies.study import Study
from benchmarks.studies.tuning import choices, to_tune
from benchmarks.studies.variants import train_shown, write_comparisons
from benchmarks.studies.workers import Workers
from engine import SettingError
from training import TrainingSettings
from training.gradients import gradient_named
from training.stopping import Stopping

GRADIENTS = (
    "R", "M", "C", "agree(R, M)", "mask-random(M, C, 1)", "config(M, R)", "pcgrad(M, R)", "cautious(R)", "unit(R)",
    "clip-norm(R, 0.1)", "clip-norm(R, 1)", "clip-norm(R, 10)", "decay(R, 0.7)", "decay(R, 0.9)", "decay(R, 0.97)",
    "truncate(R, 5)", "truncate(R, 20)", "balance(0.3)", "balance(1)", "keep-size", "step-agreement", "bisect(M, R)",
    "bisect(M, balance(1))", "bisect-smaller(M, R)", "bisect-unit(M, R)", "where-agree(M, R, bisect(M, R))",
)  # fmt: skip
"""Those that differ in their own number alone are one row: that which is best on the tuning seeds."""

_CONTROL = TrainingSettings(batch_size=16, train_samples=128, test_samples=64)
_CHAOS = TrainingSettings(train_samples=64, test_samples=32)
_PARTICLES = TrainingSettings(batch_size=2, train_samples=32, test_samples=16)
_FLUID = TrainingSettings(batch_size=4, train_samples=64, test_samples=16)
_BETWEEN = ("every-step(clip-norm(R, 0.1))", "every-step(clip-norm(decay-rate(R, 15), 0.1))")
"""Where controls are held."""
_BETWEEN_STEPS = "every-step("


@dataclass(frozen=True)
class Entry:
    """How a task is trained here.

    Attributes:
        difficulty: of all values of the option that makes it harder, the one that is hard.
        epochs: of every training.
        options: others of the task.
        shared: further settings of the study.
        more: gradients of this task alone, whose control is held for several steps of the physics.
    """

    difficulty: Any
    epochs: int
    options: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    more: tuple[str, ...] = ()

    def study(self, task: str, seeds: int, gradients: Sequence[str] = ()) -> Study:
        """Of all gradients, or of those that are given but for those that are left out."""
        given = tuple(gradient_named(text).text for text in gradients) or (*GRADIENTS, *self.more)
        left_out = self.left_out(given)
        return Study(
            task,
            dict(self.options),
            (self.difficulty,),
            gradients=tuple(text for text in given if text not in left_out),
            epochs=self.epochs,
            seed_count=seeds,
            tuning_seed_count=2,
            tune_knobs=True,
            **self.shared,
        )

    def left_out(self, gradients: Sequence[str]) -> list[str]:
        """Those that act between held steps, where no control is held: there they are what they act with."""
        texts = [gradient_named(text).text for text in gradients]
        return [text for text in texts if _BETWEEN_STEPS in text] if not self.more else []


def _trained(rate: float, settings: TrainingSettings, clipping: str = "norm") -> dict[str, Any]:
    return {"clippings": (clipping,), "learning_rates": (rate,), "settings": settings}


TASKS = {
    "cart-pole": Entry(4, 200),
    "cart-pendulum": Entry(2, 100),
    "guidance": Entry(0.001, 100),
    "quantum": Entry(5, 40),
    "hopper": Entry(100, 100, {}, _trained(2e-3, _CONTROL), _BETWEEN),
    "kuramoto-sivashinsky": Entry(88, 60, {}, _trained(3e-3, _CHAOS, "none"), _BETWEEN),
    "swarm": Entry(2000, 24, {}, _trained(1e-2, _PARTICLES)),
    # Sound at 10, since jets drive it beyond the usual 5, where its time step is no longer stable.
    "fluid": Entry(4, 2, {"particles": 500, "sound_speed": 10.0}, _trained(5e-3, _FLUID, "norm(0.1)"), _BETWEEN),
}


def zoo(tasks: Sequence[str], seeds: int, gradients: Sequence[str] = ()) -> dict[str, Study]:
    """The study of each task, without a repetition, of all gradients or of those that are given.

    SettingError for a task that is none of these, or for gradients without R, with which all are compared.
    """
    if gradients and AGAINST not in [gradient_named(text).text for text in gradients]:
        raise SettingError(
            f"Expected {AGAINST} among the gradients, with which all others are compared, got {', '.join(gradients)}; "
            "name it too."
        )
    for name in tasks:
        if name not in TASKS:
            raise SettingError(f"Expected tasks of the zoo, {', '.join(TASKS)}, got {name!r}.")
    return {name: TASKS[name].study(name, seeds, gradients) for name in dict.fromkeys(tasks)}


def print_left_out(tasks: Sequence[str], gradients: Sequence[str], console: Console) -> None:
    """Tell which of the gradients that are asked for are not trained on which task, and why."""
    for name in tasks:
        for text in TASKS[name].left_out(gradients):
            console.print(f"{name}: no control is held there, so {text} is left out", highlight=False, soft_wrap=True)


def print_hours(studies: Mapping[str, Study], out: Path, console: Console) -> None:
    """Tell how many trainings of each task are left and for how long, an update of each timed in a pack."""
    total, width = 0.0, max(map(len, studies))
    for name, study in studies.items():
        everything, left = trainings(study), trainings_left(study, out / name)
        (difficulty,) = study.difficulties
        with console.status(f"timing an update of {name}"):
            each = seconds_of_a_seed(study, difficulty) / len(study.gradients) if left else 0.0
        total += left * each / 3600
        told = f"{name:{width}}  {left} of {everything} trainings are left, {left * each / 3600:.2f} hours"
        console.print(told, highlight=False)
    console.print(f"{total:.1f} hours are left on this machine as it is now", highlight=False)


def trainings(study: Study) -> int:
    """How many there are in all, those for tuning too."""
    return len(to_tune(study)) * study.tuning_seed_count + len(choices(study)) * study.seed_count


def trainings_left(study: Study, out: Path) -> int:
    """How many of them are not done; RunError where a study stands there that is no part of it."""
    if not StudyDirectory.is_at(out):
        return trainings(study)
    check_holds(study.to_config(), StudyDirectory(out).config, out)
    return trainings(study) - len(StudyDirectory(out).results)


def run_zoo(studies: Mapping[str, Study], out: Path, console: Console, workers: Workers | None = None) -> None:
    """Train what is left, task by task; KeyboardInterrupt where a signal stops it."""
    with Stopping() as stopping:
        for task, study in studies.items():
            train_shown(study, out / task, console, workers, stopping)


def report_zoo(studies: Mapping[str, Study], out: Path, console: Console) -> list[Path]:
    """Write the report of every task that has reported trainings, and the matrix of all that stand there."""
    done, written = write_comparisons(studies, out, console, tuple(TASKS))
    return [*written, *write_matrix(done, out)] if done else written
