"""An oracle for the gradient variants: plain PyTorch autograd, with `detach` where a path is cut.

Nothing here knows the adjoint recursion or shares a line with the package, so agreement between the two is
evidence. A rollout is

    u_t = policy(x_t),   x_{t+1} = step(x_t, u_t),   L = sum_t running_cost(x_t, u_t, t) + final_cost(x_T)

and a variant says which of its two paths from x_t to x_{t+1}, through the simulator and through the policy,
the derivative may take. The costs see every state uncut.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]
Policy = Callable[[Tensor], Tensor]
RunningCost = Callable[[Tensor, Tensor, int], Tensor]
FinalCost = Callable[[Tensor], Tensor]

# variant: (the physics path is open, the policy path is open)
PATHS = {"R": (True, True), "M": (True, False), "S": (False, False), "N": (False, True)}


def cart_pole_step(state: Tensor, control: Tensor, dt: float = 0.01) -> Tensor:
    """One semi-implicit Euler step of n poles hinged on one cart; theta = 0 is upright.

    state [B, 2 + 2n] is (x, x', theta_1..theta_n, theta'_1..theta'_n) in m, m/s, rad, rad/s; control [B, 1]
    is the force on the cart in N. Returns the next state, same shape.
    """
    gravity, pole_mass, total_mass, half_length = 9.8, 0.1, 1.1, 0.5
    moment = pole_mass * half_length
    poles = (state.shape[1] - 2) // 2
    position, velocity, angle, rate = state.split([1, 1, poles, poles], dim=1)
    sine, cosine = angle.sin(), angle.cos()

    push = (control + moment * sine * rate**2) / total_mass
    inertia = half_length * (4 / 3 - pole_mass * cosine**2 / total_mass)
    angular_acceleration = (gravity * sine - cosine * push) / inertia
    reaction = (sine * rate**2 - angular_acceleration * cosine).sum(dim=1, keepdim=True)
    acceleration = (control + moment * reaction) / total_mass

    velocity = velocity + dt * acceleration
    rate = rate + dt * angular_acceleration
    return torch.cat([position + dt * velocity, velocity, angle + dt * rate, rate], dim=1)


def swing_up_cost(state: Tensor) -> Tensor:
    """1 - mean over the poles of cos(theta). state [B, 2 + 2n]; returns [B]."""
    poles = (state.shape[1] - 2) // 2
    return 1 - state[:, 2 : 2 + poles].cos().mean(dim=1)


def linear_step(A: Tensor, B: Tensor) -> Step:
    """x' = A x + B u on rows: A [D, D], B [D, C]; the step maps state [N, D], control [N, C] to [N, D]."""
    return lambda state, control: state @ A.T + control @ B.T


def integrator_step(state: Tensor, control: Tensor) -> Tensor:
    """x' = x + u. Both [B, D]."""
    return state + control


def mlp(weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor) -> Tensor:
    """Dense layers with tanh between them. weights [in, out] each, biases [out] each, x [B, in]."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = (x @ weight + bias).tanh()
    return x @ weights[-1] + biases[-1]


def rollout_loss(
    step: Step,
    policy: Policy,
    x0: Tensor,
    horizon: int,
    running_cost: RunningCost | None,
    final_cost: FinalCost,
    variant: str = "R",
) -> Tensor:
    """Loss of each sample [B] from x0 [B, D]; autograd through it gives the gradient of `variant`."""
    physics_open, policy_open = PATHS[variant]
    state, loss = x0, x0.new_zeros(len(x0))
    for t in range(horizon):
        control = policy(state if policy_open else state.detach())
        if running_cost is not None:
            loss = loss + running_cost(state, control, t)
        state = step(state if physics_open else state.detach(), control)
    return loss + final_cost(state)


def gradients(
    variant: str,
    parameters: Sequence[Tensor],
    step: Step,
    policy: Callable[[Sequence[Tensor], Tensor], Tensor],
    x0: Tensor,
    horizon: int,
    running_cost: RunningCost | None,
    final_cost: FinalCost,
) -> tuple[Tensor, ...]:
    """Gradient of the batch-mean loss for `variant` (R, M, S, N or C), shaped like `parameters`.

    The policy is `policy(parameters, state)`. C keeps a component of M's gradient where R's has the same sign
    and puts 0 elsewhere.
    """
    if variant == "C":
        modified, regular = (
            gradients(v, parameters, step, policy, x0, horizon, running_cost, final_cost) for v in "MR"
        )
        pairs = zip(modified, regular, strict=True)
        return tuple(torch.where(m.sign() == r.sign(), m, torch.zeros_like(m)) for m, r in pairs)
    leaves = [parameter.detach().requires_grad_() for parameter in parameters]
    loss = rollout_loss(step, partial(policy, leaves), x0, horizon, running_cost, final_cost, variant).mean()
    found = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return tuple(gradient.detach() for gradient in found)


def central_difference(
    loss_fn: Callable[[list[Tensor]], Tensor], parameters: Sequence[Tensor], eps: float = 1e-6
) -> tuple[Tensor, ...]:
    """Gradient of the scalar `loss_fn(parameters)` by central differences in float64, one entry at a time."""
    base = [parameter.detach().double() for parameter in parameters]

    def slope(index: int, direction: Tensor) -> Tensor:
        ahead, behind = (
            [p + sign * eps * direction if i == index else p for i, p in enumerate(base)] for sign in (1, -1)
        )
        return (loss_fn(ahead) - loss_fn(behind)) / (2 * eps)

    with torch.no_grad():
        return tuple(
            torch.stack([slope(index, unit.view_as(p)) for unit in torch.eye(p.numel()).double()]).view_as(p)
            for index, p in enumerate(base)
        )


def directional_difference(
    loss_fn: Callable[[list[Tensor]], Tensor],
    parameters: Sequence[Tensor],
    direction: Sequence[Tensor],
    eps: float = 1e-6,
) -> Tensor:
    """Slope of `loss_fn(parameters)` along `direction` (shaped like `parameters`) by a central difference."""

    def along(distance: Tensor) -> Tensor:
        moved = zip(parameters, direction, strict=True)
        return loss_fn([p.detach().double() + distance * d.double() for p, d in moved])

    (at_zero,) = central_difference(lambda distance: along(distance[0]), [torch.zeros(())], eps)
    return at_zero
