"""Jets that push the particles around them, and what these pass back to a jet."""

import taichi as ti

# On the CPU sums over the particles go over so many at a time, in parallel and always in the same order.
CHUNK = 512
# A steered jet's velocity decays at this rate.
JET_DAMPING = 1.0


@ti.data_oriented
class Jets:
    """The jets of `Fluid`, whose docstring defines the symbols. Derived classes set the attributes.

    Attributes:
        dim, jets, particles, dt, steered, jet_radius, jet_strength: of the fluid.
        chunk, chunks: particles in a chunk, and how many chunks there are.
    """

    dim: int
    jets: int
    particles: int
    dt: float
    steered: bool
    jet_radius: float
    jet_strength: float
    chunk: int
    chunks: int

    @ti.kernel
    def sum_jets(
        self,
        control: ti.types.ndarray(ndim=3),
        half: ti.types.ndarray(ndim=3),
        kick: ti.types.ndarray(ndim=3),
        order: ti.types.ndarray(ndim=2),
        sums: ti.types.ndarray(ndim=4),
        parameters: ti.types.ndarray(ndim=2),
        loop: ti.template(),
        varied: ti.template(),
    ):
        """For each chunk of particles and each jet Σ E q̂, then the adjoint of the jet's place without dt."""
        ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
        for b, chunk in ti.ndrange(loop.count if ti.static(loop.count > 0) else half.shape[0], self.chunks):
            strength = self.strength(parameters, b, varied)
            for j in range(self.jets):
                pushes, places = ti.Vector.zero(float, self.dim), ti.Vector.zero(float, self.dim)
                y = self._of(half, b, j)
                for s in range(chunk * self.chunk, ti.min((chunk + 1) * self.chunk, self.particles)):
                    i = self.jets + order[b, s]
                    r, q = self._of(half, b, i) - y, self._of(kick, b, i)
                    reach, work = self.reach(r), 0.0
                    for axis in ti.static(range(self.dim)):
                        work += strength * control[b, axis, j] * q[axis]
                    pushes += reach**3 * q
                    places += 6.0 / self.jet_radius**2 * work * reach * reach * r
                for axis in ti.static(range(self.dim)):
                    sums[b, chunk, j, axis] = pushes[axis]
                    sums[b, chunk, j, self.dim + axis] = places[axis]

    @ti.func
    def reach(self, r):
        """1 - |r|²/J², at least 0."""
        return ti.max(1.0 - r.dot(r) / self.jet_radius**2, 0.0)

    @ti.func
    def strength(self, parameters: ti.template(), b, varied: ti.template()):
        """F of sample b."""
        return parameters[b, 0] if ti.static(varied) else self.jet_strength

    @ti.func
    def _of(self, rows: ti.template(), b, i):
        """What the first rows [dim] hold of body i."""
        return ti.Vector([rows[b, axis, i] for axis in range(self.dim)])

    @ti.func
    def pull_back_jet(
        self,
        next_adjoint: ti.template(),
        kick: ti.template(),
        sums: ti.template(),
        adjoint: ti.template(),
        cotangent: ti.template(),
        strength,
        b,
        j,
    ):
        """The adjoint of jet j and the cotangent of its control, from the sums of `sum_jets` and from q̂ = `kick`."""
        for axis in ti.static(range(self.dim)):
            push, moved = 0.0, 0.0
            for chunk in range(self.chunks):
                push += sums[b, chunk, j, axis]
                moved += sums[b, chunk, j, self.dim + axis]
            q = kick[b, axis, j]
            to_position = next_adjoint[b, axis, j] + self.dt * moved
            cotangent[b, axis, j] += self.dt * strength * push
            adjoint[b, axis, j] = to_position
            adjoint[b, self.dim + axis, j] = q + 0.5 * self.dt * to_position
            if ti.static(self.steered):
                cotangent[b, self.dim + axis, j] += self.dt * q
                adjoint[b, self.dim + axis, j] -= self.dt * JET_DAMPING * q

    @ti.func
    def pushed(self, control: ti.template(), half: ti.template(), x, strength, b):
        """The acceleration of a particle at x by all jets."""
        result = ti.Vector.zero(float, self.dim)
        for j in range(self.jets):
            reach = self.reach(x - self._of(half, b, j))
            for axis in ti.static(range(self.dim)):
                result[axis] += strength * control[b, axis, j] * reach**3
        return result

    @ti.func
    def pull_back_pushed(self, control: ti.template(), half: ti.template(), x, q, strength, b):
        """What the adjoint q of that passes to x, and to F."""
        to_place, to_strength = ti.Vector.zero(float, self.dim), 0.0
        for j in range(self.jets):
            r, work = x - self._of(half, b, j), 0.0
            reach = self.reach(r)
            for axis in ti.static(range(self.dim)):
                work += control[b, axis, j] * q[axis]
            to_strength += reach**3 * work
            to_place -= 6.0 / self.jet_radius**2 * (strength * work) * reach * reach * r
        return to_place, to_strength
