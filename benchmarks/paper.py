"""The explanatory figures of Schnell and Thuerey (ICLR 2024), drawn from this engine's gradients."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.colors import LogNorm

from engine import FULL, PHYSICS_ONLY, Rollout, current
from engine.norms import norm
from policies import Polynomial
from training import SignAgreement, build_task
from training.estimators import Backpropagation
from training.outputs import check_folder
from training.style import WIDEST, new_figure, power, save_ours

Field = Callable[[torch.Tensor], torch.Tensor]


def toy_fields(points: int, limit: float = 4.0) -> tuple[torch.Tensor, ...]:
    """Fig. 1: the loss and the gradients R and M of the task `integrator` over θ in [-limit, limit]².

    Every grid point is a member of one ensemble. Returns θ [points², 2], losses [points²], R and M [points², 2].
    """
    axis = torch.linspace(-limit, limit, points, dtype=current().dtype)
    theta = torch.cartesian_prod(axis, axis).to(current().device)
    task = build_task("integrator")
    policy = Polynomial((1,), len(theta), current().dtype, current().device)
    with torch.no_grad():
        policy.theta.copy_(theta)
    rollout = Rollout(task.system, policy, task.horizon, len(theta))
    rollout.forward(task.initial_states(1, 0, "train", current().dtype).expand(len(theta), 1).contiguous())
    found = rollout.backward([FULL, PHYSICS_ONLY], task.objective)
    return theta, found.losses, found.parameters[FULL], found.parameters[PHYSICS_ONLY]


def gradient_field(theta: torch.Tensor) -> torch.Tensor:
    """Fig. 2a: the gradient of θ₁² + θ₂²."""
    return 2.0 * theta


def rotated_field(theta: torch.Tensor) -> torch.Tensor:
    """Fig. 2b: the same gradient turned by arctan 2, a field that circles the minimum."""
    return torch.stack([theta[0] + 2.0 * theta[1], theta[1] - 2.0 * theta[0]]) / math.sqrt(5.0)


def masked_field(theta: torch.Tensor) -> torch.Tensor:
    """Fig. 2c: the turned gradient where it agrees in sign with the true one, as the combined gradient does."""
    base, reference = Backpropagation(PHYSICS_ONLY), Backpropagation(FULL)
    given = {PHYSICS_ONLY: rotated_field(theta), FULL: gradient_field(theta)}
    return SignAgreement(base, reference).combine(given)


FIELDS: dict[str, Field] = {"gradient": gradient_field, "rotated": rotated_field, "masked": masked_field}


def descend(field: Field, steps: int = 200, rate: float = 0.1) -> torch.Tensor:
    """The path [steps + 1, 2] of Adam from (2, 4) along a field."""
    theta = torch.tensor([2.0, 4.0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theta], lr=rate)
    path = [theta.detach().clone()]
    for _ in range(steps):
        theta.grad = field(theta.detach())
        optimiser.step()
        path.append(theta.detach().clone())
    return torch.stack(path)


def draw_figures(out: Path) -> list[Path]:
    """Draw both figures into a directory; the runtime must be running. SettingError where there can be none."""
    check_folder(out, "the figures")
    return [_draw_toy_fields(out / "fig1.png"), _draw_descents(out / "fig2.png")]


def _draw_toy_fields(path: Path, points: int = 161) -> Path:
    _, losses, full, physics = (value.cpu() for value in toy_fields(points))
    figure, panels = new_figure(WIDEST, 2.8, 3, sharey=True)
    shown = (
        ("loss", losses, 1e-5, 1e5),
        ("|R|, full backpropagation", norm(full), 1e-3, 1e3),
        ("|M|, physics path only", norm(physics), 1e-3, 1e3),
    )
    for axes, (title, values, low, high) in zip(panels, shown, strict=True):
        image = axes.imshow(
            values.view(points, points).T.numpy(), origin="lower", extent=(-4, 4, -4, 4), norm=LogNorm(low, high)
        )
        axes.set(title=title, xlabel="θ₁")
        figure.colorbar(image, ax=axes, shrink=0.85, format=power)
    panels[0].set_ylabel("θ₂")
    return save_ours(figure, path)


def _draw_descents(path: Path) -> Path:
    figure, panels = new_figure(WIDEST, 3.5, 3, sharey=True)
    axis = torch.linspace(-4.5, 4.5, 13, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).T
    for axes, (name, field) in zip(panels, FIELDS.items(), strict=True):
        arrows = -field(grid)
        axes.quiver(*grid.numpy(), *arrows.numpy(), color="0.7", width=0.004)
        way = descend(field)
        axes.plot(*way.T.numpy(), color="#D55E00", linewidth=1.4)
        axes.plot(2, 4, "o", color="#D55E00", markersize=4)
        axes.set(title=f"{name}: final loss {final_loss(way):.3g}", xlabel="θ₁", aspect="equal")
    panels[0].set_ylabel("θ₂")
    return save_ours(figure, path)


def final_loss(way: torch.Tensor) -> float:
    """θ₁² + θ₂² at the end of a path."""
    return float(way[-1].square().sum())
