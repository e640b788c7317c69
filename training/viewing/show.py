"""What `evenflow view` shows: rollouts and adjoints under a player's control, as scenes for a canvas."""

from collections.abc import Sequence

import numpy as np

from engine import SettingError
from training.errors import RunError
from training.estimators import of_sweeps
from training.gradients import gradient_named
from training.viewing.drawings import Camera, Drawing, Frame, Moment, Scene, Solid, drawing_of
from training.viewing.palette import BLACK, DARK, GREY, VERMILION
from training.viewing.player import Player
from training.viewing.profile import Profile
from training.viewing.scene import LARGE, MEDIUM
from training.viewing.simulation import Episode, Simulation, goal_of, step_seconds
from training.viewing.watching import Watched

_KEY_LINES = (
    "space pause   left/right step   up/down speed   r restart",
    "a/s seed   p/n checkpoint   drag: push   right click: target   q quit",
)


class Show:
    """Panels of scenes: one for each controller, or one for each gradient with their profile beside them.

    Args:
        controllers: who is watched, all from the same start.
        gradients: texts of those whose adjoints are played backwards; for one controller.
        seed, speed: to begin with.

    Attributes:
        player: what is shown when.
        episodes: the present rollout of each controller.
    """

    def __init__(
        self, controllers: Sequence[Watched], gradients: Sequence[str] = (), seed: int = 0, speed: float = 1.0
    ):
        first, *others = controllers
        variants = list(dict.fromkeys(gradient_named(text) for text in gradients))
        for variant in variants:
            if not of_sweeps(variant.estimator):
                raise SettingError(
                    f"Expected gradients of whole sweeps to watch, got {variant.text}; watch what it is made of."
                )
        if others and variants:
            raise SettingError(
                "Expected gradients of one controller, got two to compare; drop --gradient or --compare."
            )
        for other in others:
            here, there = ((one.task.name, one.task.system.state_shape, one.task.horizon) for one in (first, other))
            if here != there:
                raise RunError(
                    f"Expected runs of the same task, size and horizon to compare, got {here[0]} {list(here[1])} over "
                    f"{here[2]} steps and {there[0]} {list(there[1])} over {there[2]}."
                )
        self._simulations = [Simulation(one, variants) for one in controllers]
        checkpoints = max(max(len(one.checkpoints) for one in controllers), 1)
        self.player = Player(
            first.task.horizon,
            checkpoints,
            seed,
            bool(variants),
            speed,
            checkpoints - 1,
        )
        self._step = step_seconds(first.task.system)
        if self._step is not None:
            self.player.steps_per_second = 1.0 / self._step
        self._texts = [variant.text for variant in variants]
        self._pushed: np.ndarray | None = None
        self._roll()

    @property
    def title(self) -> str:
        task = self._simulations[0].task.name
        return f"{task}: {' beside '.join(one.of.name for one in self._simulations)}"

    @property
    def panels(self) -> int:
        return len(self._texts) + 1 if self._texts else len(self._simulations)

    @property
    def can_aim(self) -> bool:
        """Whether there is a goal to move: a point in the plane."""
        return all(simulation.can_aim for simulation in self._simulations)

    def press(self, key: str) -> None:
        """Act on a key; a restart undoes pushes, and another seed or checkpoint makes a new rollout."""
        if self.player.press(key):
            self._pushed = None
            self._roll()

    def push(self, panel: int, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Push the body nearest to `start`, in a panel's unit square, toward `end`; the rollout starts anew there."""
        index = min(panel, len(self.episodes) - 1)
        state = self.episodes[index].states[self.player.t]
        frame = self._cameras[index](self.player.t)
        begin, stop = frame.world(start), frame.world(end)
        if not self._texts or panel < len(self._texts):
            self._pushed = self._drawing.push(state, begin, stop - begin)
            self.player.rewind()
            self._roll()

    def aim(self, place: tuple[float, float]) -> None:
        """Move the goal, if there is one, to a place of a panel's unit square; the rollout keeps its start."""
        if self.can_aim:
            x, y = self._frame.world(place)
            for simulation in self._simulations:
                simulation.aim((float(x), float(y)))
            self._roll()

    def scenes(self) -> list[Scene]:
        """One scene for each panel, as the player stands."""
        if not self._texts:
            panels = zip(self._simulations, self.episodes, self._cameras, strict=True)
            return [self._scene(episode, camera, one, one.of.name) for one, episode, camera in panels]
        profile, (simulation,), (episode,), (camera,) = (
            self._profile, self._simulations, self.episodes, self._cameras,
        )  # fmt: skip
        assert profile is not None
        player, scenes = self.player, []
        for text in self._texts:
            colours = profile.shades(text, player.t) if player.returning else None
            scenes.append(self._scene(episode, camera, simulation, f"gradient {text}", colours))
        scenes.append(Scene())
        profile.draw(scenes[-1], player.t, player.returning)
        return scenes

    def solids(self, t: int | None = None) -> list[Solid]:
        """One picture in three dimensions for each controller; none of systems that are flat.

        Args:
            t: step of the rollout, by default the player's.
        """
        t = self.player.t if t is None else t
        moments = [Moment(one.states, one.controls, t, None, self._fastest) for one in self.episodes]
        pictures = [self._drawing.solid(moment) for moment in moments]
        return [picture for picture in pictures if picture is not None]

    def stand(self, steps: Sequence[int]) -> None:
        """See these steps, and no others, of all controllers in still frames to one scale."""
        stills = iter(self._drawing.stills([(one.states, t) for one in self.episodes for t in steps]))
        frames = [{t: next(stills) for t in steps} for _ in self.episodes]
        self._cameras = [of.__getitem__ for of in frames]

    def captions(self) -> list[str]:
        """Who each controller is, when this is, and its loss, in a line for each."""
        pairs = zip(self._simulations, self.episodes, strict=True)
        return [f"{self._named(one, one.of.name)}   {self._status(episode)}   {self._pace()}" for one, episode in pairs]

    def add_keys(self, scene: Scene) -> None:
        """The keys, at the foot of a scene."""
        for line, text in enumerate(_KEY_LINES):
            scene.text(text, (0.02, 0.062 - 0.031 * line), 0.026, GREY)

    def _named(self, simulation: Simulation, name: str) -> str:
        epoch = simulation.of.epoch(self.player.checkpoint)
        return name if epoch is None else f"{name}, epoch {epoch}"

    def _status(self, episode: Episode) -> str:
        """When this is, and the loss."""
        player = self.player
        loss = episode.losses[-1 if player.returning else player.t]
        value = "loss" if player.returning else "loss so far"
        return f"t {player.t}/{player.horizon}   {value} {loss:.4g}"

    def _pace(self) -> str:
        """How fast time passes, and from which start."""
        player = self.player
        if self._step is not None:
            pace = f"{player.t * self._step:.2f} s   x{player.speed:g} real time"
        else:
            pace = f"{player.speed * player.steps_per_second:g} steps a second"
        return f"{pace}   start {player.seed}{'' if player.playing or player.ended else '   paused'}"

    def _roll(self) -> None:
        start = self._simulations[0].initial(self.player.seed) if self._pushed is None else self._pushed
        self.episodes = [simulation.run(start, self.player.checkpoint) for simulation in self._simulations]
        task = self._simulations[0].task
        self._drawing: Drawing = drawing_of(task.system, goal_of(task))
        states = [episode.states for episode in self.episodes]
        self._cameras, self._fastest = self._drawing.cameras(states), self._drawing.fastest(states)
        adjoints = self.episodes[0].adjoints
        self._profile = Profile(adjoints, self._drawing) if adjoints else None

    @property
    def _frame(self) -> Frame:
        """In which the first controller is seen now."""
        return self._cameras[0](self.player.t)

    def _scene(
        self, episode: Episode, camera: Camera, simulation: Simulation, name: str, colours: np.ndarray | None = None
    ) -> Scene:
        scene, player = Scene(), self.player
        moment = Moment(episode.states, episode.controls, player.t, colours, self._fastest)
        scene.text(self._named(simulation, name), (0.02, 0.985), LARGE, BLACK)
        scene.text(self._status(episode), (0.02, 0.932), MEDIUM, DARK)
        if player.returning:
            scene.text("the adjoint flows back", (0.02, 0.886), MEDIUM, VERMILION)
        else:
            scene.text(self._pace(), (0.02, 0.886), MEDIUM, DARK)
        self._drawing.draw(scene, camera(player.t), moment)
        return scene
