"""What a scaling study measures."""

from dataclasses import dataclass
from typing import Annotated

from engine import SettingError
from engine.checks import positive, whole
from engine.memory import parse_bytes
from training.arguments import MAY_BE_EMPTY

# Below this a swarm has hardly more evaders than drivers.
_FEWEST = 32


@dataclass(frozen=True)
class ScaleSettings:
    """Options of `evenflow bench scale`."""

    systems: Annotated[tuple[str, ...], MAY_BE_EMPTY] = (
        "swarm",
        "swarm-cells",
        "fluid",
        "fluid-3d",
        "n-body",
        "n-body-3d",
    )
    """Systems of particles, measured against N, and any other registered one, against samples in a batch; an unknown
    name lists them."""
    sizes: tuple[int, ...] = ()
    """Numbers of particles; by default the system's own. Sizes above what a system of all pairs is for are left out."""
    peers: bool = True
    """Time the peers as well, where they are installed: JAX, jax-md, NVIDIA Warp and torch eager."""
    horizon_system: str = "swarm-cells"
    """System of the long rollouts."""
    horizon_particles: int = 100_000
    """Particles of the long rollouts."""
    horizons: Annotated[tuple[int, ...], MAY_BE_EMPTY] = (100, 1000, 2000)
    """Steps of the long rollouts, forward and backward; none at all leaves them out."""
    memory: str = "512MiB"
    """Budget of each long rollout, beyond what the interpreter itself takes."""
    threads: int | None = None
    """CPU threads of every side; every core by default."""
    limit: float = 900.0
    """Seconds that a measurement may take; one that takes longer is recorded as such."""
    memory_limit: str = "8GiB"
    """Memory that a measurement's process may take; one that takes more is recorded as such."""

    def __post_init__(self):
        for name, values, least in (
            ("sizes", self.sizes, _FEWEST),
            ("horizon-particles", (self.horizon_particles,), _FEWEST),
            ("horizons", self.horizons, 1),
            ("threads", () if self.threads is None else (self.threads,), 1),
        ):
            for value in values:
                whole(f"{name} of at least {least}", value, least)
        if not self.systems and not self.horizons:
            raise SettingError("Expected systems or horizons to measure, got neither; give at least one.")
        positive("a limit of more than 0 seconds", self.limit)
        parse_bytes(self.memory)
        parse_bytes(self.memory_limit)
