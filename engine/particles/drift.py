"""The half step in which bodies move by their velocities, forward and adjoint, and their images inside the box."""

import taichi as ti

from engine.particles.walls import MirrorWalls


@ti.data_oriented
class Drift(MirrorWalls):
    """The drifts of `Fluid`, whose docstring defines the symbols. Derived classes set the attributes.

    Attributes:
        jets, bodies, dt: of the fluid.
    """

    jets: int
    bodies: int
    dt: float

    @ti.kernel
    def drift(
        self,
        state: ti.types.ndarray(ndim=3),
        half: ti.types.ndarray(ndim=3),
        inside: ti.types.ndarray(ndim=3),
        loop: ti.template(),
    ):
        """x½ of all bodies; x½ and v of the particles' images inside the box."""
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, i in ti.ndrange(loop.count if ti.static(loop.count > 0) else state.shape[0], self.bodies):
            for axis in ti.static(range(self.dim)):
                velocity = state[b, self.dim + axis, i]
                place = state[b, axis, i] + 0.5 * self.dt * velocity
                half[b, axis, i] = place
                if i >= self.jets:
                    image, side = self.fold(place, axis)
                    inside[b, axis, i - self.jets] = image
                    inside[b, self.dim + axis, i - self.jets] = side * velocity

    @ti.kernel
    def drift_back(
        self,
        state: ti.types.ndarray(ndim=3),
        next_adjoint: ti.types.ndarray(ndim=3),
        kick: ti.types.ndarray(ndim=3),
        turned: ti.types.ndarray(ndim=3),
        loop: ti.template(),
    ):
        """q̂ of all bodies, and of the particles' images inside the box."""
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, i in ti.ndrange(loop.count if ti.static(loop.count > 0) else kick.shape[0], self.bodies):
            for axis in ti.static(range(self.dim)):
                q = next_adjoint[b, self.dim + axis, i] + 0.5 * self.dt * next_adjoint[b, axis, i]
                kick[b, axis, i] = q
                if i >= self.jets:
                    place = state[b, axis, i] + 0.5 * self.dt * state[b, self.dim + axis, i]
                    _, side = self.fold(place, axis)
                    turned[b, axis, i - self.jets] = side * q
