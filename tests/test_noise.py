"""Noise: the published answers of its generator, its statistics, and that it depends on what it says and no more."""

import math

import numpy as np
import pytest
import taichi as ti
import torch
from conftest import relative_error

import engine
from engine import SettingError
from engine.noise import CONTROL, STATE, Noise, NoiseSource, philox

# Known answers of the Random123 library for philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def python_philox(counter, key):
    """The generator in Python's own integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second % 2**32, first >> 32 ^ c[3] ^ k[1], first % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


@ti.kernel
def _words(given: ti.types.ndarray(ndim=1), found: ti.types.ndarray(ndim=1)):
    for _ in range(1):
        counter = ti.Vector([ti.cast(given[i], ti.u32) for i in range(4)])
        key = ti.Vector([ti.cast(given[4 + i], ti.u32) for i in range(2)])
        words = philox(counter, key)
        for i in ti.static(range(4)):
            found[i] = ti.cast(words[i], ti.i32)


def source(kind=STATE, scale=1.0, slots=3, batch=4, members=2, shape=(3,), seeds=(5, 6), draw=0, step=0):
    made = NoiseSource(kind, scale, slots, batch, members, shape)
    made.seed(seeds, draw)
    made.fill(step)
    return made.values


@pytest.mark.cuda
@pytest.mark.vulkan
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_generator_gives_the_published_answers(counter, key, expected):
    device = engine.current().device
    given = torch.tensor([word - 2**32 if word >= 2**31 else word for word in (*counter, *key)], dtype=torch.int32)
    found = torch.zeros(4, dtype=torch.int32, device=device)
    _words(given.to(device), found)
    assert tuple(word % 2**32 for word in found.tolist()) == expected == python_philox(counter, key)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_every_number_is_the_generator_s_for_its_seed_kind_step_component_sample_and_draw():
    values = source(CONTROL, 2.0, seeds=(5, 2**32 - 1), draw=7, step=10)
    expected = torch.zeros(3, 4, 3, dtype=torch.float64)
    for slot in range(3):
        for b in range(4):
            for i in range(3):
                words = python_philox((10 + slot, i // 2, b % 2, 7), ((5, 2**32 - 1)[b // 2], CONTROL))
                radius, angle = math.sqrt(-2 * math.log((words[0] + 1) / 2**32)), 2 * math.pi * words[1] / 2**32
                expected[slot, b, i] = 2.0 * radius * (math.sin(angle) if i % 2 else math.cos(angle))
    assert relative_error(values, expected) < (1e-12 if values.dtype == torch.float64 else 1e-5)


@pytest.mark.cuda
@pytest.mark.vulkan
def test_noise_is_standard_normal_and_independent():
    values = source(slots=100, batch=100, members=1, shape=(10,), seeds=1).cpu().double()
    count = values.numel()
    assert abs(values.mean()) < 5 / math.sqrt(count)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert torch.corrcoef(values.flatten(1)).fill_diagonal_(0).abs().max() < 0.2
    assert torch.corrcoef(values.flatten(0, 1).T).fill_diagonal_(0).abs().max() < 0.06


@pytest.mark.cuda
@pytest.mark.vulkan
def test_the_same_is_drawn_for_the_same_step_in_another_slot_of_another_batch():
    values = source(seeds=(5, 6))
    assert torch.equal(source(seeds=(5, 6), step=1)[:2], values[1:])
    assert torch.equal(source(batch=2, members=1, seeds=6), values[:, 2:])
    assert torch.equal(source(batch=2, members=1, seeds=np.int64(6)), values[:, 2:])
    assert not torch.equal(source(draw=1), values)
    assert not torch.equal(source(kind=CONTROL), values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(state=-1.0), "noise of the state of a finite scale of at least 0, got -1.0"),
        (lambda: source(seeds=(1, 2, 3)), "a seed of noise for each of 2 members, got 3"),
        (lambda: source(seeds=-1), "a seed of noise of at least 0 and below 2³², got -1"),
        (
            lambda: NoiseSource(STATE, 1.0, 1, 2, 1, (1,)).fill(0),
            r"a seed for the noise of a rollout, got none; call its seed_noise\(seed\) first",
        ),
    ],
)
def test_noise_that_cannot_be_is_refused(make, message):
    with pytest.raises(SettingError, match=rf"^Expected {message}\.$"):
        make()
