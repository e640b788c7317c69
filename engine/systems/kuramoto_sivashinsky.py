"""The Kuramoto-Sivashinsky equation: a flame front or film on a ring, the smallest turbulent flow."""

import math
from typing import NamedTuple

import numpy as np
import torch

from engine import runtime
from engine.checks import positive, whole
from engine.errors import SettingError
from engine.launch import Launch
from engine.system import System

# Points of the circle on which Kassam and Trefethen average functions that would cancel near 0.
_CONTOUR = 64
_TRIES = 100


class _Scheme(NamedTuple):
    """Circulant matrices [N, N] of one step, to be multiplied from the right by rows [B, N]; `forcing` is [m, N]."""

    half: np.ndarray
    whole: np.ndarray
    inner: np.ndarray
    first: np.ndarray
    middle: np.ndarray
    last: np.ndarray
    forced_stage: np.ndarray
    forced_step: np.ndarray


class KuramotoSivashinsky(System):
    """u_t = -u u_x - u_xx - u_xxxx + Σ_i a_i(t) g_i(x) on a ring of length L, with g_i(x) = exp(-(x - x_i)²/(2σ²)).

    State [N]: u at x_j = jL/N, j = 0..N-1. Control [m]: the amplitudes a_i, constant over a step; actuator i sits at
    x_i = iL/m. At L = 22 the flow is chaotic with a largest Lyapunov exponent between 0.04 and 0.05: errors grow by e
    in some 22 units of time.

    Exponential Runge-Kutta of fourth order (ETDRK4): the linear part exactly, the nonlinear part -½(u²)_x in four
    stages, derivatives spectral. With 64 points at L = 22 the highest modes are damped so strongly that products need
    no truncation. Where a force sets in, order three is what is seen at steps of 0.025 and more; at dt = 0.1 a unit of
    time errs by 2e-5. Each stage is a few products of [B, N] with [N, N] matrices.

    Sources: Kassam and Trefethen (SIAM J. Sci. Comput. 2005) for the scheme; Bucci et al. (Proc. R. Soc. A 2019) for
    length, points and actuators.

    Args:
        points: N, even.
        actuators: m, evenly spaced; width: σ of their Gaussians.
        length: L.
        dt: time step.
    """

    def __init__(self, points: int = 64, actuators: int = 4, length: float = 22.0, width: float = 0.4, dt: float = 0.1):
        for name, count, least in (("points", points, 8), ("actuators", actuators, 1)):
            whole(f"at least {least} {name} on the ring", count, least)
        if points % 2:
            raise SettingError(f"Expected an even number of points on the ring, got {points}.")
        for name, value in (("length", length), ("width", width), ("time step dt", dt)):
            positive(f"a finite {name} above 0", value)
        self.name = "kuramoto-sivashinsky"
        self.points, self.actuators, self.length, self.dt = points, actuators, length, dt
        self.state_shape, self.control_shape = (points,), (actuators,)
        self.places = length * np.arange(points) / points
        self.shapes = np.stack([self._bump(length * i / actuators, width) for i in range(actuators)])
        self._exact = _scheme(points, length, dt, self.shapes)
        self._on_device: tuple[torch.Tensor, ...] | None = None

    def prepare_step(self, state, control, next_state):
        matrices, stages = self._matrices(), self._stages(len(state))
        state, control, next_state = state.detach(), control.detach(), next_state.detach()
        given = self.scratch("control", *control.shape)

        def launch() -> None:
            given.copy_(control)  # products round by where they find their operands; controls may begin anywhere
            self._forward(matrices, state, given, stages, next_state)

        return launch

    def prepare_pull_back(self, state, control, next_adjoint, adjoint, cotangent) -> Launch:
        matrices, stages, bars = self._matrices(), self._stages(len(state)), self._bars(len(state))
        half, whole, inner, first, middle, last, forced_stage, forced_step = (matrix.t() for matrix in matrices)
        (s0, s1, s2, s3), (a, b, c) = bars, stages[:3]
        state, control = state.detach(), control.detach()
        given, pulled = self.scratch("control", *control.shape), self.scratch("cotangent", *control.shape)

        def launch() -> None:
            given.copy_(control)
            self._forward(matrices, state, given, stages, None)
            torch.mm(next_adjoint, last, out=s3)
            s3.mul_(c).mul_(2.0)  # the adjoint of c
            torch.mm(next_adjoint, middle, out=s2)
            s1.copy_(s2)
            s2.addmm_(s3, inner, alpha=2.0).mul_(b).mul_(2.0)  # of b
            s1.addmm_(s2, inner).mul_(a).mul_(2.0).addmm_(s3, half)  # of a
            torch.mm(next_adjoint, first, out=s0)
            s0.addmm_(s1, inner).addmm_(s3, inner, alpha=-1.0).mul_(state).mul_(2.0)
            torch.mm(next_adjoint, whole, out=adjoint)
            adjoint.add_(s0)
            s1.add_(s2)
            adjoint.addmm_(s1, half)
            s1.add_(s3)
            torch.mm(s1, forced_stage, out=pulled)
            cotangent.add_(pulled.addmm_(next_adjoint, forced_step))

        return launch

    def scratch_bytes(self, batch):
        return batch * (11 * self.points + 2 * self.actuators) * runtime.current().dtype.itemsize

    def attractor(self, count: int, generator: torch.Generator, duration: float = 200.0) -> torch.Tensor:
        """`count` states [count, N], float64, that random waves have become after `duration` without control."""
        modes = torch.arange(1, 5, dtype=torch.float64).view(-1, 1)
        angle = 2.0 * math.pi * modes * torch.arange(self.points, dtype=torch.float64) / self.points
        draw = torch.randn(2, count, len(modes), generator=generator, dtype=torch.float64)
        state = draw[0] @ angle.cos() + draw[1] @ angle.sin()
        matrices = tuple(torch.from_numpy(matrix) for matrix in self._exact)
        stages = tuple(torch.zeros(count, self.points, dtype=torch.float64) for _ in range(7))
        control = torch.zeros(count, self.actuators, dtype=torch.float64)
        for _ in range(math.ceil(duration / self.dt)):
            following = torch.empty_like(state)
            self._forward(matrices, state, control, stages, following)
            state = following
        return state

    def equilibrium(self, waves: int) -> np.ndarray:
        """The steady state [N] with this many waves on the ring, found by Newton's method among odd states.

        At L = 22 there are E1, E2 and E3 (Cvitanović, Davidchack and Siminos, SIAM J. Appl. Dyn. Syst. 2010) for 1, 2
        and 3; 0 is the state of rest.

        Raises:
            SettingError: Newton's method finds none.
        """
        from scipy.optimize import root

        if waves == 0:
            return np.zeros(self.points)
        most = self.points // 4 - 1
        waves = whole(f"an equilibrium of 0 to {most} waves", waves, least=1, most=most)
        draw = np.random.default_rng(0)
        for _ in range(_TRIES):
            guess = np.zeros(self.points // 2 - 1)
            guess[waves - 1 :: waves][:3] = draw.normal(scale=self.points / 3, size=len(guess[waves - 1 :: waves][:3]))
            found = root(lambda odd: self._odd(self._rate(self._from_odd(odd))), guess, tol=1e-13)
            state = self._from_odd(found.x)
            spectrum = np.abs(np.fft.rfft(state))
            if np.abs(self._rate(state)).max() < 1e-9 and spectrum.max() > 1e-3 and spectrum.argmax() == waves:
                return state
        raise SettingError(f"Expected an equilibrium with {waves} waves at length {self.length:g}, found none.")

    def _forward(self, matrices, state, control, stages, next_state) -> None:
        """The stages a, b, c, and the next state where there is room for it; `control` acts on all of them alike."""
        half, whole, inner, first, middle, last, forced_stage, forced_step = matrices
        a, b, c, s0, s1, s2, forced = stages
        torch.mm(control, forced_stage, out=forced)
        torch.mul(state, state, out=s0)
        torch.addmm(forced, state, half, out=b)  # what a and b share
        torch.addmm(b, s0, inner, out=a)
        torch.mul(a, a, out=s1)
        b.addmm_(s1, inner)
        torch.mul(b, b, out=s2)
        torch.addmm(forced, a, half, out=c)
        c.addmm_(s2, inner, alpha=2.0).addmm_(s0, inner, alpha=-1.0)
        if next_state is not None:
            torch.mm(control, forced_step, out=next_state)
            next_state.addmm_(state, whole).addmm_(s0, first)
            s1.add_(s2)
            next_state.addmm_(s1, middle)
            torch.mul(c, c, out=s2)
            next_state.addmm_(s2, last)

    def _matrices(self) -> tuple[torch.Tensor, ...]:
        if self._on_device is None:
            now = runtime.current()
            self._on_device = tuple(torch.from_numpy(matrix).to(now.device, now.dtype) for matrix in self._exact)
        return self._on_device

    def _stages(self, batch: int) -> tuple[torch.Tensor, ...]:
        return tuple(self.scratch("stages", 7, batch, self.points).unbind(0))

    def _bars(self, batch: int) -> tuple[torch.Tensor, ...]:
        return tuple(self.scratch("bars", 4, batch, self.points).unbind(0))

    def _bump(self, centre: float, width: float) -> np.ndarray:
        """A Gaussian on the ring, by the shorter way around."""
        away = (self.places - centre + self.length / 2) % self.length - self.length / 2
        return np.exp(-0.5 * (away / width) ** 2)

    def _rate(self, state: np.ndarray) -> np.ndarray:
        """u_t without control."""
        waves, rates = _symbols(self.points, self.length)
        return np.fft.irfft(rates * np.fft.rfft(state) - 0.5j * waves * np.fft.rfft(state**2), self.points)

    def _odd(self, state: np.ndarray) -> np.ndarray:
        """Sine coefficients of an odd state, which do not know of shifts."""
        return -np.fft.rfft(state).imag[1:-1]

    def _from_odd(self, coefficients: np.ndarray) -> np.ndarray:
        return np.fft.irfft(np.concatenate([[0.0], -1j * coefficients, [0.0]]), self.points)


def _symbols(points: int, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Wave numbers k of a real transform, 0 for the highest, whose derivative a grid does not see; k² - k⁴ of all."""
    waves = 2.0 * math.pi / length * np.arange(points // 2 + 1)
    derivative = waves.copy()
    derivative[-1] = 0.0
    return derivative, waves**2 - waves**4


def _scheme(points: int, length: float, dt: float, shapes: np.ndarray) -> _Scheme:
    """Matrices of ETDRK4; coefficients by averages over circles in the complex plane, as Kassam and Trefethen do."""
    waves, rates = _symbols(points, length)
    z = dt * rates
    around = z[:, None] + np.exp(1j * math.pi * (np.arange(_CONTOUR) + 0.5) / _CONTOUR)

    def mean(values: np.ndarray) -> np.ndarray:
        return dt * values.mean(1).real

    e = np.exp(around)
    inner = mean((np.exp(around / 2) - 1) / around)
    first = mean((-4 - around + e * (4 - 3 * around + around**2)) / around**3)
    middle = mean(2 * (2 + around + e * (around - 2)) / around**3)
    last = mean((-4 - 3 * around - around**2 + e * (4 - around)) / around**3)

    def circulant(symbol: np.ndarray) -> np.ndarray:
        column = np.fft.irfft(symbol, points)
        index = (np.arange(points)[:, None] - np.arange(points)[None]) % points
        return np.ascontiguousarray(column[index].T)  # rows from the right

    advection = -0.5j * waves
    return _Scheme(
        circulant(np.exp(z / 2)), circulant(np.exp(z)), circulant(inner * advection), circulant(first * advection),
        circulant(middle * advection), circulant(last * advection), shapes @ circulant(inner),
        shapes @ circulant(first + 2 * middle + last),
    )  # fmt: skip
