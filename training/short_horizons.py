"""Short horizons: gradients of a few steps and of a learned value of what follows them, as in SHAC.

Every member keeps N environments, which go on from update to update. An update steps them through a window of h steps
under the present policy, sweeps back through it from the costs of these steps and the critic's value of where they
end, and then lets the critic learn from what was seen. Where an environment ended, or reached the task's horizon T, it
stays until the window is over, and begins the next one anew, from a state that the task draws.

N = ⌈b T / h⌉ for a batch of b, so that an update, and with it an epoch, simulates as many steps as one of gradients
over the whole horizon: b T, rounded up. Environments begin at steps 0, h, 2h, ... < T of the task in turn, so that
every window sees all parts of the horizon. The loss of an update is that of its windows, discounted and with what is
still to be paid by the critic's account; losses on test states are those of whole rollouts.

Source: Xu et al., "Accelerated Policy Learning with Parallel Differentiable Simulation" (ICLR 2022).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine import AdjointRule, Rollout, SettingError, current
from engine.checks import finite, whole
from engine.contracts import check_rule
from policies import Policy
from training.critic import Critic, targets_of
from training.starts import FreshStarts
from training.task import Task
from training.window_cost import START, WindowCost, critics_shape, in_windows


@dataclass(frozen=True)
class Short:
    """The gradient of Σ_{s<h} γˢ ℓ_s + γʰ V(o_h) over windows of h steps, swept with an adjoint rule.

    With R it is SHAC's; with M the state entering the policy is stopped within the window, and V(o_h) still reaches x_h
    through what is observed.

    Args:
        of: the rule.
        steps: h, at most the task's horizon.
        discount: γ in (0, 1].
    """

    of: AdjointRule
    steps: int
    discount: float = 0.99

    def __post_init__(self):
        check_rule(self.of)
        object.__setattr__(self, "steps", whole("a short horizon of at least 1 step", self.steps))
        wanted = "a discount above 0 and at most 1"
        object.__setattr__(self, "discount", finite(wanted, self.discount, lambda number: 0 < number <= 1))

    @property
    def rules(self) -> tuple["Short"]:
        return (self,)

    def combine(self, gradients: Mapping[Any, torch.Tensor]) -> torch.Tensor:
        return gradients[self]


class Windows:
    """The environments and critics of members with one short horizon, in one rollout; everything of it is stored.

    Args:
        task: what is trained for.
        policy: `policy(members)` builds policies like the one that is trained.
        shorts: what each member is trained by, by its index in the ensemble; all of one number of steps.
        seeds: of the ensemble's members.
        batch: b, initial states of a member's update over the whole horizon.

    Attributes:
        members: indices in the ensemble.
        rollout: of P·N samples.
        critic: of these members.
    """

    def __init__(
        self,
        task: Task,
        policy: Callable[[int], Policy],
        shorts: Mapping[int, Short],
        seeds: Sequence[int],
        batch: int,
    ):
        self.task, self.members, self.shorts = task, list(shorts), list(shorts.values())
        self.steps = steps = self.shorts[0].steps
        if steps > task.horizon:
            raise SettingError(
                f"Expected a short horizon of at most the {task.horizon} steps of {task.name}, got {steps}; shorten it."
            )
        device = current().device
        self._seeds, self._each = [seeds[index] for index in self.members], -(-batch * task.horizon // steps)
        self.policy = policy(len(self.members))
        names = (*(name for name, *_ in task.randomise), START)
        parts = task.parts | {"observation": in_windows(task), "parameters": names}
        count = len(self.members) * self._each
        self.rollout = Rollout(task.system, self.policy, steps, count, **parts)
        self.critic = Critic(critics_shape(task), self._seeds)
        discounts = torch.tensor([short.discount for short in self.shorts], dtype=current().dtype, device=device)
        self._discount = discounts.repeat_interleave(self._each)
        self._cost = WindowCost(task, self.critic, self._discount)
        self._states = torch.zeros_like(self.rollout.states[0], requires_grad=False)
        self._rows = torch.zeros(count, len(names), dtype=self._states.dtype, device=device)
        self._starts = [FreshStarts(task, seed) for seed in self._seeds]
        self._drawn, self._count = torch.zeros(len(self.members), dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        self._begin_anew(torch.ones(count, dtype=torch.bool, device=device))
        places = torch.arange(self._each, device=device) % -(-task.horizon // steps)
        self._rows[:, -1] = (places * steps).repeat(len(self.members))

    def gradients(self, theta: torch.Tensor) -> tuple[torch.Tensor, dict[Short, torch.Tensor]]:
        """The losses [P] of the next windows and the gradients [P, n] of each `Short`, for members `theta` [P, n].

        A gradient means nothing for members who do not want it. Environments and critics go on.
        """
        rollout, count = self.rollout, int(self._count)
        self.policy.theta.data.copy_(theta)
        if self.task.noise is not None:
            rollout.seed_noise(self._seeds, count)
        rollout.turn = count
        rollout.forward(self._states, parameters=self._rows)
        last = self._close()
        found = rollout.backward(list(self._spans()), self._cost, self._spans(), physical=False)
        with torch.no_grad():
            learned = self._learned(last)
        self.critic.learn(*learned)
        self._go_on(last)
        gradients = {short: found.parameters[short.of] for short in dict.fromkeys(self.shorts)}
        return found.losses.view(len(self.members), -1).mean(1), gradients

    def tensors(self) -> dict[str, torch.Tensor]:
        """What goes on from window to window, by name, for a checkpoint."""
        own = self._going() | self.critic.tensors()
        return {f"short.{self.steps}.{name}": value for name, value in own.items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from `tensors()`."""
        prefix = f"short.{self.steps}."
        own = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        for name, mine in self._going().items():
            mine.copy_(own[name])
        self.critic.load(own)

    def _going(self) -> dict[str, torch.Tensor]:
        """Of environments: states, parameters, and how many windows there were and starts were drawn."""
        return {"states": self._states, "rows": self._rows, "windows": self._count, "drawn": self._drawn}

    def _spans(self) -> dict[AdjointRule, slice]:
        """For each rule the smallest run of samples that holds every member who needs it."""
        rules = [short.of for short in self.shorts]
        runs = {rule: [place for place, one in enumerate(rules) if one == rule] for rule in rules}
        return {rule: slice(run[0] * self._each, (run[-1] + 1) * self._each) for rule, run in runs.items()}

    def _close(self) -> torch.Tensor:
        """Tell the cost when and how each window ended; x_τ [B, *state_shape]."""
        task, cost, ends = self.task, self._cost, self.rollout.parts.ends
        begun = self._rows[:, -1].long()
        left = (task.horizon - begun).clamp(max=self.steps)
        at = torch.full_like(left, self.steps) if ends is None else ends.at
        cost.stop = torch.minimum(left, at)
        cost.inside = left < at
        last = self.rollout.states.detach()[cost.stop, torch.arange(len(left), device=left.device)]
        cost.ended = torch.zeros_like(cost.inside) if task.end is None else task.end(last)
        cost.out_of_time = (begun + cost.stop == task.horizon) & ~cost.ended
        return last

    def _learned(self, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Observations [h, B, ...] of a window, their targets [h, B], and which of them came before its end."""
        rollout, stop = self.rollout, self._cost.stop
        named = dict(zip((*(name for name, *_ in self.task.randomise), START), self._rows.unbind(1), strict=True))
        steps = torch.arange(self.steps, device=stop.device)
        cost = self._cost.given({name: values.expand(self.steps, -1) for name, values in named.items()})
        costs = cost.of_steps(rollout.states.detach()[:-1], rollout.controls, steps)
        seen = cost.seen(rollout.states.detach()[:-1], steps.view(-1, 1))
        values = torch.stack([self.critic(rows) for rows in seen])
        targets = targets_of(costs, values, self._cost.given(named).after(last), stop, self._discount)
        counted = steps.view(-1, 1) < stop
        shape = (*counted.shape, *[1] * (seen.dim() - 2))
        return torch.where(counted.view(shape), seen, 0.0), torch.where(counted, targets, 0.0), counted

    def _go_on(self, last: torch.Tensor) -> None:
        """Begin the next windows where these ended, or anew."""
        self._states.copy_(last)
        self._rows[:, -1] += self._cost.stop
        self._count += 1
        self._begin_anew(self._cost.ended | self._cost.out_of_time | ~torch.isfinite(last).flatten(1).all(1))

    def _begin_anew(self, over: torch.Tensor) -> None:
        """Draw states and parameters for samples that are `over` [B]: the next of each member's."""
        for index, wanted in enumerate(over.view(len(self.members), -1).sum(1).tolist()):
            if not wanted:
                continue
            states, parameters = self._starts[index](int(self._drawn[index]), wanted)
            self._drawn[index] += wanted
            places = over.view(len(self.members), -1)[index].nonzero().flatten() + index * self._each
            self._states[places] = states.to(self._states)
            self._rows[places, -1] = 0.0
            if parameters is not None:
                self._rows[places, :-1] = parameters.to(self._rows)


def by_steps(estimators: Sequence[Any]) -> list[dict[int, Short]]:
    """The members of an ensemble that are trained over short horizons, those of one number of steps together."""
    found: dict[int, dict[int, Short]] = {}
    for index, estimator in enumerate(estimators):
        if isinstance(estimator, Short):
            found.setdefault(estimator.steps, {})[index] = estimator
    return list(found.values())
