"""Noise that is computed from what it belongs to, so that it is the same whenever it is asked for, and never stored."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import taichi as ti
import torch

from engine import runtime
from engine.checks import finite, whole
from engine.errors import SettingError
from engine.launch import prepare
from engine.loops import loop_over

# Of Philox-4x32: multipliers and what is added to the keys in every round.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_TO_UNIT = 2.0**-32
_MOST = 2**32
STATE, CONTROL = 0, 1


@dataclass(frozen=True)
class Noise:
    """Independent normal noise on states and controls, at every step of every sample:

        x_{t+1} = S(x_t, u_t) + σ_x w_t,   u_t = π(x_t) + σ_u v_t,   w_t, v_t ~ N(0, 1)

    The control that the objective sees is the one that acts, noise included.

    Attributes:
        state: σ_x; control: σ_u; one for all components.
    """

    state: float = 0.0
    control: float = 0.0

    def __post_init__(self):
        for name in ("state", "control"):
            wanted = f"noise of the {name} of a finite scale of at least 0"
            object.__setattr__(self, name, finite(wanted, getattr(self, name), lambda number: number >= 0))


class NoiseSource:
    """Draws of one kind for the slots of a trajectory.

    The numbers are Philox-4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011): key (seed,
    kind), counter (step, pair of components, sample in its member, draw), made normal by Box and Muller's transform.

    Args:
        kind: STATE or CONTROL.
        scale: standard deviation.
        slots, batch, members: of the trajectory; shape: of what is disturbed.

    Attributes:
        values: [slots, B, *shape], of the steps last asked for.
    """

    def __init__(self, kind: int, scale: float, slots: int, batch: int, members: int, shape: tuple[int, ...]):
        device, dtype = runtime.current().device, runtime.current().dtype
        self.values = torch.zeros(slots, batch, *shape, dtype=dtype, device=device)
        self._settings = torch.ones(4, dtype=torch.int32, device=device)  # first step, draw, first sample, each
        self._seeds = torch.zeros(members, dtype=torch.int32, device=device)
        self._members, self._seeded = members, []
        flat = self.values.view(slots, batch, math.prod(shape))
        loop = loop_over(slots * batch, (flat.shape[2] + 1) // 2)
        self._fill = prepare(_fill, flat, self._seeds, self._settings, batch // members, kind, scale, loop)

    def seed(self, seeds: int | Sequence[int], draw: int, first: int = 0, each: int = 1) -> None:
        """Settle what follows: a seed for all members or one for each, and which of a seed's draws; below 2³² each.

        Samples of a member count from `first`; `each` so many rows in succession are one sample.
        """
        several = list(seeds) if isinstance(seeds, Iterable) else [seeds] * self._members
        if len(several) != self._members:
            raise SettingError(f"Expected a seed of noise for each of {self._members} members, got {len(several)}.")
        numbers = [whole("a seed of noise of at least 0 and below 2³²", seed, 0, _MOST - 1) for seed in several]
        draw = whole("a draw of noise of at least 0 and below 2³²", draw, 0, _MOST - 1)
        with torch.inference_mode(False):
            if numbers != self._seeded:  # what comes from the host is waited for
                self._seeds.copy_(torch.tensor([_signed(number) for number in numbers], dtype=torch.int32))
            self._settings[1].fill_(_signed(draw))
            self._settings[2].fill_(first)
            self._settings[3].fill_(each)
        self._seeded = numbers

    def fill(self, step: int) -> None:
        """Write the noise of the steps from `step` on, one for each slot."""
        if not self._seeded:
            raise SettingError("Expected a seed for the noise of a rollout, got none; call its seed_noise(seed) first.")
        self._settings[0].fill_(step)
        self._fill()


def _signed(number: int) -> int:
    """The 32-bit integer with the bits of this one."""
    return number - _MOST if number >= _MOST // 2 else number


@ti.func
def _product(a: ti.u32, b: ti.template()):
    """(high, low) words of a·b, by halves: not every backend has 64 bits."""
    b_low, b_high = ti.u32(b & 0xFFFF), ti.u32(b >> 16)
    a_low, a_high = a & ti.u32(0xFFFF), a >> ti.u32(16)
    low, middle, other, high = a_low * b_low, a_high * b_low, a_low * b_high, a_high * b_high
    carry = ((low >> ti.u32(16)) + (middle & ti.u32(0xFFFF)) + (other & ti.u32(0xFFFF))) >> ti.u32(16)
    return high + (middle >> ti.u32(16)) + (other >> ti.u32(16)) + carry, a * ti.u32(b)


@ti.func
def philox(counter, key):
    """Philox-4x32-10: four words [4] of u32 from a counter [4] and a key [2]."""
    c, k = counter, key
    for _ in range(_ROUNDS):
        high_0, low_0 = _product(c[0], _MULTIPLIERS[0])
        high_1, low_1 = _product(c[2], _MULTIPLIERS[1])
        c = ti.Vector([high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0])
        k = ti.Vector([k[0] + ti.u32(_WEYL[0]), k[1] + ti.u32(_WEYL[1])])
    return c


@ti.kernel
def _fill(
    values: ti.types.ndarray(ndim=3),
    seeds: ti.types.ndarray(ndim=1),
    settings: ti.types.ndarray(ndim=1),
    rows: int,
    kind: int,
    scale: float,
    loop: ti.template(),
):
    ti.loop_config(serialize=loop.serial, block_dim=loop.block_dim)
    for row, pair in ti.ndrange(
        loop.count if ti.static(loop.count > 0) else values.shape[0] * values.shape[1],
        loop.rows if ti.static(loop.rows > 0) else (values.shape[2] + 1) // 2,
    ):
        slot, b = row // values.shape[1], row % values.shape[1]
        step, sample = settings[0] + slot, settings[2] + b % rows // settings[3]
        counter = ti.Vector([ti.u32(step), ti.u32(pair), ti.u32(sample), ti.cast(settings[1], ti.u32)])
        key = ti.Vector([ti.cast(seeds[b // rows], ti.u32), ti.u32(kind)])
        words = philox(counter, key)
        # In (0, 1]: the logarithm of 0 is left out.
        radius = scale * ti.sqrt(-2.0 * ti.log((ti.cast(words[0], float) + 1.0) * _TO_UNIT))
        angle = 2.0 * math.pi * (ti.cast(words[1], float) * _TO_UNIT)
        values[slot, b, 2 * pair] = radius * ti.cos(angle)
        if 2 * pair + 1 < values.shape[2]:
            values[slot, b, 2 * pair + 1] = radius * ti.sin(angle)
