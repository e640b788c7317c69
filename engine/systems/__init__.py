"""The physical systems that ship, one file each."""

from engine.held import Held
from engine.systems.cart_pendulum import CartPendulum
from engine.systems.cart_pole import CartPole
from engine.systems.fluid import Fluid
from engine.systems.guidance import Guidance
from engine.systems.integrator import Integrator
from engine.systems.linear import LinearSystem
from engine.systems.n_body import NBody
from engine.systems.quantum import QuantumBox
from engine.systems.swarm import Swarm

SYSTEMS = {
    "cart-pendulum": CartPendulum,
    "cart-pole": CartPole,
    "fluid": Fluid,
    "guidance": Guidance,
    "integrator": Integrator,
    "linear": LinearSystem,
    "n-body": NBody,
    "quantum": QuantumBox,
    "swarm": Swarm,
}

__all__ = [
    "SYSTEMS",
    "CartPendulum",
    "CartPole",
    "Fluid",
    "Guidance",
    "Held",
    "Integrator",
    "LinearSystem",
    "NBody",
    "QuantumBox",
    "Swarm",
]
