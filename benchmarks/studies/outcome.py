"""What a run amounts to in one picture: one test start, and where each gradient's controller takes it."""

import textwrap
from pathlib import Path

from engine.checks import whole
from training import Experiment, RunDirectory
from training.errors import RunError
from training.outputs import PICTURES, check_new_file
from training.style import picture_grid, save
from training.summary import groups
from training.viewing import member_of
from training.viewing.drawings import GuiCanvas, Moment, Scene, drawing_of
from training.viewing.simulation import Simulation, goal_of

_PIXELS = 400
# Letters and inches of a line of a panel's title.
_LETTERS, _LINE = 36, 0.25


def outcome_figure(path: Path, out: Path, seed: int = 0) -> Path:
    """Draw the first state of a test start and, for each gradient, the last state, all in one frame.

    Of each gradient that member is shown whose test loss is the median, the upper one of an even number; members
    that diverged come last. Titles give its seed and its loss from this start.

    Args:
        path: of the run; needs a runtime of its precision.
        out: the picture, .png, .pdf, .svg or .jpg; it must not exist.
        seed: of the start.

    Raises:
        RunError: no run with an epoch there, or a file in the way.
        SettingError: another ending, a place that cannot be written, a negative seed.
    """
    check_new_file(out, PICTURES, "the picture")
    seed = whole("a seed of at least 0", seed, least=0)
    run = RunDirectory.open(path)
    records, labels = run.metrics(), Experiment.from_config(run.config).labels()
    if not records:
        raise RunError(f"Expected a run with at least one epoch, got {path}, which has none; train it first.")
    losses = [float("inf") if loss is None else loss for loss in records[-1]["test_loss"]]
    parts = groups(labels)
    chosen = [sorted(group.members, key=lambda member: losses[member])[len(group.members) // 2] for group in parts]
    simulations = [Simulation(member_of(run, member)) for member in chosen]
    episodes = [one.run(one.initial(seed), len(one.of.checkpoints) - 1) for one in simulations]
    titles = [
        f"{textwrap.fill(f'{group.name}, seed {labels[member].seed}', _LETTERS)}\nloss {episode.losses[-1]:.3g}"
        for group, member, episode in zip(parts, chosen, episodes, strict=True)
    ]
    drawing = drawing_of(simulations[0].task.system, goal_of(simulations[0].task))
    shown = [(episodes[0].states, 0), *((one.states, len(one.controls)) for one in episodes)]
    frames, fastest = drawing.stills(shown), drawing.fastest([states[t : t + 1] for states, t in shown])
    figure, panels = picture_grid(1 + len(episodes), 0.1 + _LINE * max(title.count("\n") + 1 for title in titles))
    moments = [Moment(episodes[0].states, 0 * episodes[0].controls, 0, None, fastest)]
    moments += [Moment(one.states, one.controls, len(one.controls), None, fastest) for one in episodes]
    for axes, frame, moment, title in zip(panels, frames, moments, ["start", *titles], strict=True):
        scene, canvas = Scene(), GuiCanvas("outcome", size=_PIXELS)
        drawing.draw(scene, frame, moment)
        canvas.paint([scene])
        axes.imshow(canvas.image())
        axes.set_title(title)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color="#CCCCCC")
    return save(figure, out)
