"""What a particle of a herd gathers from all others, forward and adjoint, for kernels."""

import taichi as ti

from engine.particles.pairs import CentralForce, pair_adjoints, pair_forces

SOFTENING = 0.1
DRIVER_DAMPING = 1.0
EVADER_DAMPING = 4.0


@ti.data_oriented
class Herding:
    """The terms of one particle of `Guidance`, whose docstring defines the symbols. Derived classes set the attributes.

    Attributes:
        drivers, particles, dt, centre_scale: of the herd.
    """

    drivers: int
    particles: int
    dt: float
    centre_scale: float
    _forces: tuple[CentralForce, CentralForce, CentralForce]
    _units: tuple[CentralForce, CentralForce, CentralForce]

    @ti.func
    def _centre(self, state: ti.template(), t, b):
        x, y = 0.0, 0.0
        for k in range(self.drivers, self.particles):
            x += state[t, b, 0, k]
            y += state[t, b, 1, k]
        return self.centre_scale * ti.Vector([x, y])

    def _force(self, which: int, varied: bool) -> CentralForce:
        """Separation, flight or flocking (0, 1, 2); with 1 for the coefficient that varies between samples."""
        return (self._units if varied else self._forces)[which]

    @ti.func
    def _weight(self, which: ti.template(), parameters: ti.template(), b, varied: ti.template()):
        """The coefficient that is missing in `_force`."""
        result = 1.0
        if ti.static(varied):
            result = parameters[b, which]
        return result

    @ti.func
    def _pull_back_coefficients(
        self,
        state: ti.template(),
        adjoint: ti.template(),
        parameter_adjoint: ti.template(),
        t,
        s,
        b,
        in_lanes: ti.template(),
    ):
        """Add (∂S/∂p)ᵀλ of sample b for the three coefficients, with the state at t and λ = adjoint[s]."""
        found = ti.Vector.zero(float, 3)
        for i in range(self.particles):
            found += self._works(state, adjoint, t, s, b, i, in_lanes)
        for which in ti.static(range(3)):
            parameter_adjoint[b, which] += found[which]

    @ti.func
    def _works(self, state: ti.template(), adjoint: ti.template(), t, s, b, i, in_lanes: ti.template()):
        """What particle i adds to the adjoints of the three coefficients."""
        found = ti.Vector.zero(float, 3)
        at = ti.Vector([state[t, b, 0, i], state[t, b, 1, i]])
        push = ti.Vector([self.dt * adjoint[s, b, 2, i], self.dt * adjoint[s, b, 3, i]])
        if i < self.drivers:
            work = push * pair_forces(state, t, b, at, 0, self.drivers, self._units[0], in_lanes)
            found[0] = work[0] + work[1]
        else:
            first, last = ti.static(self.drivers, self.particles)
            fled = push * pair_forces(state, t, b, at, 0, first, self._units[1], in_lanes)
            flocked = push * pair_forces(state, t, b, at, first, last, self._units[2], in_lanes)
            found[1] = fled[0] + fled[1]
            found[2] = flocked[0] + flocked[1]
        return found

    @ti.func
    def _advance_particle(
        self,
        states: ti.template(),
        controls: ti.template(),
        next_states: ti.template(),
        t,
        s,
        b,
        i,
        in_lanes: ti.template(),
        parameters: ti.template(),
        varied: ti.template(),
    ):
        """Particle i of `next_states[s]` from `states[t]` and `controls[t]`."""
        acceleration = self._acceleration(states, controls, t, b, i, in_lanes, parameters, varied)
        for axis in ti.static(range(2)):
            velocity = states[t, b, 2 + axis, i]
            next_states[s, b, axis, i] = states[t, b, axis, i] + self.dt * velocity
            next_states[s, b, 2 + axis, i] = velocity + self.dt * acceleration[axis]

    @ti.func
    def _acceleration(
        self,
        state: ti.template(),
        control: ti.template(),
        t,
        b,
        i,
        in_lanes: ti.template(),
        parameters: ti.template(),
        varied: ti.template(),
    ):
        position = ti.Vector([state[t, b, 0, i], state[t, b, 1, i]])
        velocity = ti.Vector([state[t, b, 2, i], state[t, b, 3, i]])
        result = ti.Vector.zero(float, 2)
        if i < self.drivers:
            centre = self._centre(state, t, b)
            result = self._steered(state, control, t, b, i, centre, in_lanes, parameters, varied)
        else:
            flight = self._weight(1, parameters, b, varied) * pair_forces(
                state, t, b, position, 0, self.drivers, ti.static(self._force(1, varied)), in_lanes
            )
            first, last = ti.static(self.drivers, self.particles)
            flock = self._weight(2, parameters, b, varied) * pair_forces(
                state, t, b, position, first, last, ti.static(self._force(2, varied)), in_lanes
            )
            result = flight - EVADER_DAMPING * velocity + flock
        return result

    @ti.func
    def _steered(
        self,
        state: ti.template(),
        control: ti.template(),
        t,
        b,
        i,
        centre,
        in_lanes: ti.template(),
        parameters: ti.template(),
        varied: ti.template(),
    ):
        """The acceleration of driver i, given the evaders' centre."""
        position = ti.Vector([state[t, b, 0, i], state[t, b, 1, i]])
        velocity = ti.Vector([state[t, b, 2, i], state[t, b, 3, i]])
        r = position - centre
        steering = control[t, b, 0, i] * r + control[t, b, 1, i] * ti.Vector([-r[1], r[0]])
        apart = self._weight(0, parameters, b, varied) * pair_forces(
            state, t, b, position, 0, self.drivers, ti.static(self._force(0, varied)), in_lanes
        )
        return steering - DRIVER_DAMPING * velocity + apart

    @ti.func
    def _pull_back_particle(
        self,
        state: ti.template(),
        control: ti.template(),
        adjoint: ti.template(),
        t,
        s,
        b,
        i,
        in_lanes: ti.template(),
        parameters: ti.template(),
        varied: ti.template(),
    ):
        """Rows of Aᵀλ for particle i, with state and control at t and λ = adjoint[s]."""
        D, N = ti.static(self.drivers, self.particles)
        at = ti.Vector([state[t, b, 0, i], state[t, b, 1, i]])
        velocity = ti.Vector([adjoint[s, b, 2, i], adjoint[s, b, 3, i]])
        gathered, damping = ti.Vector.zero(float, 2), DRIVER_DAMPING
        if i < D:
            chased = self._chased(state, adjoint, t, s, b, i, D, N, ti.static(self._force(1, varied)), in_lanes)
            gathered = self._passed_to_driver(state, control, adjoint, t, s, b, i, chased, in_lanes, parameters, varied)
        else:
            damping = EVADER_DAMPING
            for d in range(D):
                gathered -= self.centre_scale * self._pull_back_steering(control, adjoint, t, s, b, d)
            gathered += self._weight(1, parameters, b, varied) * pair_adjoints(
                state, adjoint, t, s, b, at, velocity, 0, D, ti.static(self._force(1, varied)), 0.0, in_lanes
            )
            gathered += self._weight(2, parameters, b, varied) * pair_adjoints(
                state, adjoint, t, s, b, at, velocity, D, N, ti.static(self._force(2, varied)), 1.0, in_lanes
            )
        return self._back_in_time(adjoint, s, b, i, gathered, damping)

    @ti.func
    def _back_in_time(self, adjoint: ti.template(), s, b, i, gathered, damping):
        """Rows of Aᵀλ for particle i, given what accelerations pass to its place."""
        position = ti.Vector([adjoint[s, b, 0, i], adjoint[s, b, 1, i]])
        velocity = ti.Vector([adjoint[s, b, 2, i], adjoint[s, b, 3, i]])
        to_position = position + self.dt * gathered
        to_velocity = velocity + self.dt * (position - damping * velocity)
        return ti.Vector([to_position[0], to_position[1], to_velocity[0], to_velocity[1]])

    @ti.func
    def _chased(
        self, state: ti.template(), adjoint: ti.template(), t, s, b, i, first: int, last: int, force: ti.template(),
        in_lanes: ti.template(),
    ):  # fmt: skip
        """What the flight of the evaders [first, last) passes to the place of driver i, from whom they flee."""
        at, nothing = ti.Vector([state[t, b, 0, i], state[t, b, 1, i]]), ti.Vector.zero(float, 2)
        return pair_adjoints(state, adjoint, t, s, b, at, nothing, first, last, force, 1.0, in_lanes)

    @ti.func
    def _passed_to_driver(
        self,
        state: ti.template(),
        control: ti.template(),
        adjoint: ti.template(),
        t,
        s,
        b,
        i,
        chased,
        in_lanes: ti.template(),
        parameters: ti.template(),
        varied: ti.template(),
    ):
        """What all accelerations pass to the place of driver i, given what `_chased` found of all evaders."""
        at = ti.Vector([state[t, b, 0, i], state[t, b, 1, i]])
        velocity = ti.Vector([adjoint[s, b, 2, i], adjoint[s, b, 3, i]])
        gathered = self._pull_back_steering(control, adjoint, t, s, b, i)
        gathered += self._weight(0, parameters, b, varied) * pair_adjoints(
            state, adjoint, t, s, b, at, velocity, 0, self.drivers, ti.static(self._force(0, varied)), 1.0, in_lanes
        )
        gathered += self._weight(1, parameters, b, varied) * chased
        return gathered

    @ti.func
    def _pull_back_steering(self, control: ti.template(), adjoint: ti.template(), t, s, b, d):
        """What driver d's steering c₁ r + c₂ r⊥ passes to its r."""
        gx, gy = adjoint[s, b, 2, d], adjoint[s, b, 3, d]
        along, across = control[t, b, 0, d], control[t, b, 1, d]
        return ti.Vector([along * gx + across * gy, along * gy - across * gx])

    @ti.func
    def _pull_back_control(self, state: ti.template(), adjoint: ti.template(), centre, t, s, b, d):
        """Bᵀλ for the controls (c₁, c₂) of driver d."""
        rx, ry = state[t, b, 0, d] - centre[0], state[t, b, 1, d] - centre[1]
        gx, gy = adjoint[s, b, 2, d], adjoint[s, b, 3, d]
        return self.dt * ti.Vector([rx * gx + ry * gy, rx * gy - ry * gx])
