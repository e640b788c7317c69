"""The swing-up of poles on a cart as expressions, for any library of arrays `xp`: jax.numpy or torch.

    L = 1 - mean over the poles of cos(theta) at the last step, averaged over the batch

States [batch, 2 + 2n] are (x, x', theta_1..theta_n, theta'_1..theta'_n).
"""

from typing import Any


def cart_pole_step(xp: Any, state: Any, control: Any, dt: float = 0.01) -> Any:
    """Semi-implicit Euler, n poles on a cart; state [B, 2 + 2n], control [B, 1], xp jax.numpy or torch."""
    gravity, pole_mass, total_mass, half_length = 9.8, 0.1, 1.1, 0.5
    moment, poles = pole_mass * half_length, (state.shape[-1] - 2) // 2
    position, velocity = state[:, :1], state[:, 1:2]
    angle, rate = state[:, 2 : 2 + poles], state[:, 2 + poles :]
    sine, cosine = xp.sin(angle), xp.cos(angle)
    spin = sine * rate**2
    push = (control + moment * spin) / total_mass
    turn = (gravity * sine - cosine * push) / (half_length * (4 / 3 - pole_mass / total_mass * cosine**2))
    pull = (control + moment * xp.sum(spin - turn * cosine, axis=-1, keepdims=True)) / total_mass
    velocity, rate = velocity + dt * pull, rate + dt * turn
    return xp.concatenate([position + dt * velocity, velocity, angle + dt * rate, rate], axis=-1)


def final_cost(xp: Any, state: Any) -> Any:
    """L of the last states."""
    poles = (state.shape[-1] - 2) // 2
    return 1 - xp.cos(state[:, 2 : 2 + poles]).mean()
