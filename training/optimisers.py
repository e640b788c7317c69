"""Torch optimisers for an ensemble whose members may differ in learning rate."""

import torch

from engine import SettingError

OPTIMISERS = ("adam", "sgd", "momentum", "adagrad", "adadelta", "rmsprop")


class EnsembleOptimiser:
    """θ_p ← θ_p + lr_p d_p, where d is the displacement that a torch optimiser makes at learning rate 1.

    Every optimiser here is elementwise and its displacement proportional to its learning rate, so one optimiser on
    a displacement [P, n] that starts each update at zero serves all members.

    Args:
        theta: parameters [P, n].
        learning_rates: [P].
        name: one of `OPTIMISERS`; "adam" has eps 1e-7 as in the paper's experiments.
        momentum: of "momentum".
    """

    def __init__(self, theta: torch.Tensor, learning_rates: torch.Tensor, name: str = "adam", momentum: float = 0.9):
        if not 0 <= momentum < 1:
            raise SettingError(f"Expected a momentum in [0, 1), got {momentum}.")
        if not torch.isfinite(learning_rates).all():
            raise SettingError(
                f"Expected learning rates that are finite as {theta.dtype}, got {learning_rates.tolist()}."
            )
        self.theta, self.learning_rates = theta, learning_rates.unsqueeze(1)
        self.displacement = torch.zeros_like(theta, requires_grad=True)
        self.optimiser = _make(name, self.displacement, momentum)
        # Torch makes an optimiser's state in its first step; all of it starts at zero.
        self.displacement.grad = torch.zeros_like(self.displacement)
        self.optimiser.step()
        for value in self.tensors().values():
            value.zero_()

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, active: torch.Tensor) -> None:
        """Move the members that are `active` [P] against `gradient` [P, n]; the others stay where they are."""
        frozen = (~active).nonzero().flatten()
        self.displacement.grad = gradient if not len(frozen) else gradient.index_fill(0, frozen, 0.0)
        self.optimiser.step()
        if len(frozen):
            self.displacement.index_fill_(0, frozen, 0.0)
        self.theta.addcmul_(self.displacement, self.learning_rates)
        self.displacement.zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The optimiser's state by name, for a checkpoint."""
        state = self.optimiser.state[self.displacement]
        return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from `tensors()` of an earlier optimiser, wherever those are."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])


def _make(name: str, parameter: torch.Tensor, momentum: float) -> torch.optim.Optimizer:
    makers = {
        "adam": lambda: torch.optim.Adam([parameter], lr=1.0, eps=1e-7, fused=True),
        "sgd": lambda: torch.optim.SGD([parameter], lr=1.0),
        "momentum": lambda: torch.optim.SGD([parameter], lr=1.0, momentum=momentum),
        "adagrad": lambda: torch.optim.Adagrad([parameter], lr=1.0),
        "adadelta": lambda: torch.optim.Adadelta([parameter], lr=1.0),
        "rmsprop": lambda: torch.optim.RMSprop([parameter], lr=1.0),
    }
    if name not in makers:
        raise SettingError(f"Expected an optimiser among {', '.join(OPTIMISERS)}, got {name!r}.")
    return makers[name]()
