"""How far quantum control's time step is from the exact propagation of the same particle under the same field.

Over a step the field is constant, so that the exact step of the N-point Hamiltonian is exp(-i dt H), by its
eigenvectors in float64. Crank-Nicolson turns an eigenstate of energy E by 2 atan(E dt / 2) instead of E dt.
"""

from typing import Any

import torch

from engine import QuantumBox, current
from training import Task, build_task

# A field that drives the task's states into each other: at the difference of the energies of eigenstates 2 and 3.
STRENGTH, LOW, HIGH = 3.0, 2, 3


def propagate(system: QuantumBox, start: torch.Tensor, controls: torch.Tensor) -> torch.Tensor:
    """ψ_0..ψ_T [T+1, B, 2, N], float64, from `start` [B, 2, N] under `controls` [T, B, 1], exactly in time."""
    place = system.dx * torch.arange(1, system.points + 1, dtype=torch.float64)
    psi = torch.complex(start[:, 0].double(), start[:, 1].double())
    found = [psi]
    for control in controls.double():
        energies, modes = torch.linalg.eigh(_free(system) + torch.diag_embed(control * place))
        modes = modes.to(psi.dtype)
        turned = torch.exp(-1j * system.dt * energies) * (modes.mT @ psi.unsqueeze(2)).squeeze(2)
        psi = (modes @ turned.unsqueeze(2)).squeeze(2)
        found.append(psi)
    return torch.view_as_real(torch.stack(found)).movedim(-1, 2)


def step_error() -> dict[str, Any]:
    """Sums of infidelity of the task's default rollout in both ways, mean over three starts; needs a runtime.

    The field is `STRENGTH` cos((E_3 - E_2) t) at the middle of each step, whatever the state.
    """
    task = build_task("quantum")
    system: Any = task.system
    start = task.initial_states(3, 0, "test", current().dtype)
    energies = torch.linalg.eigvalsh(_free(system))
    times = system.dt * (torch.arange(task.horizon, dtype=torch.float64) + 0.5)
    field = STRENGTH * torch.cos((energies[HIGH - 1] - energies[LOW - 1]) * times)
    controls = field.view(-1, 1, 1).expand(-1, len(start), 1).to(current().dtype).contiguous()
    states = [start.to(current().device)]
    for control in controls.to(current().device):
        states.append(system.step(states[-1], control))
    ours, exact = torch.stack(states).cpu(), propagate(system, start, controls)
    return {
        "dt": system.dt,
        "steps": task.horizon,
        "crank_nicolson": _loss(task, ours),
        "exact": _loss(task, exact),
    }


def sentence(error: dict[str, Any]) -> str:
    """What `step_error` found, for people."""
    apart = abs(error["crank_nicolson"] - error["exact"])
    return (
        f"quantum, {error['steps']} steps of dt = {error['dt']:g} in a field of {STRENGTH:g} cos((E₃ - E₂) t): the sum "
        f"of infidelity is {error['crank_nicolson']:.2f} by Crank-Nicolson and {error['exact']:.2f} by exact "
        f"propagation, {apart:.2f} apart; take a smaller dt to have the particle instead of the paper's benchmark."
    )


def _free(system: QuantumBox) -> torch.Tensor:
    """H without a field, [N, N]."""
    beside = torch.full((system.points - 1,), -1.0 / system.dx**2, dtype=torch.float64)
    centre = torch.full((system.points,), 2.0 / system.dx**2, dtype=torch.float64)
    return torch.diag(centre) + torch.diag(beside, 1) + torch.diag(beside, -1)


def _loss(task: Task, states: torch.Tensor) -> float:
    """Mean over the batch of Σ_{t=1..T} of the task's infidelity."""
    objective: Any = task.objective
    return float(objective.final(states[1:]).sum(0).mean())
