"""tanh in kernels: a call of the library would keep loops of the CPU out of vector lanes."""

import taichi as ti
from taichi.lang import impl


@ti.func
def tanh(x):
    """tanh(x) from products and one quotient alone, so that it runs in lanes; not a number where x is not."""
    result = ti.cast(0, float)
    if ti.static(impl.get_runtime().default_fp == ti.f64):  # noqa: SIM108, which kernels do not have
        result = _tanh64(x)
    else:
        result = _tanh32(x)
    return result


@ti.func
def _tanh32(x):
    """x P(x²) / Q(x²), the rational function that is nearest up to 9.1, from where on tanh is 1.

    Within 3.2 ε where quotients are rounded rightly: its coefficients are positive, so that nothing cancels, and end
    within 0.4 ε of tanh; the rest is rounding.
    """
    y = ti.select(x > 9.1, 9.1, ti.select(x < -9.1, -9.1, x))
    z = y * y
    above = ((1.317751721752208e-8 * z + 2.0481181641262082e-5) * z + 3.4878106755285884e-3) * z
    above = (above + 1.3374474853891935e-1) * z + 1.0
    below = ((7.704043624421719e-7 * z + 3.2729196240827407e-4) * z + 2.5847387092665177e-2) * z
    below = (below + 4.670778863542521e-1) * z + 1.0
    result = y * above / below
    return ti.select(result > 1.0, 1.0, ti.select(result < -1.0, -1.0, result))


@ti.func
def _tanh64(x):
    """Within 2 ε: below 0.625 the rational function of Moshier's Cephes library, above it (E - 1)/(E + 1) with
    E = exp(2|x|), whose own rational function of the remainder of 2|x| by ln 2 needs no quotient of its own.
    """
    y = ti.min(ti.abs(x), 22.0)  # from there on tanh is 1 in float64 too
    z = y * y
    low = ((-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3) * z
    low_below = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3
    power = ti.cast(2.8853900817779268 * y + 0.5, ti.i32)
    whole = ti.cast(power, float)
    rest = 2.0 * y - whole * 6.93145751953125e-1 - whole * 1.42860682030941723212e-6
    square = rest * rest
    odd = (1.26177193074810590878e-4 * square + 3.02994407707441961300e-2) * square + 9.99999999999999999910e-1
    odd *= rest
    even = (3.00198505138664455042e-6 * square + 2.52448340349684104192e-3) * square + 2.27265548208155028766e-1
    even = even * square + 2.0
    above, below = (even + odd) * _power_of_two(power), even - odd
    small = y < 0.625
    size = ti.select(small, y * (low_below + low), above - below) / ti.select(small, low_below, above + below)
    return ti.select(x == x, ti.select(x < 0.0, -size, size), x)


@ti.func
def _power_of_two(power):
    """2^power for a whole number, from its bits."""
    result = ti.cast(1, float)
    if ti.static(impl.get_runtime().default_fp == ti.f64):
        result = ti.bit_cast((ti.cast(power, ti.i64) + 1023) << 52, ti.f64)
    else:
        result = ti.bit_cast((power + 127) << 23, ti.f32)
    return result
