"""What to try, as a gradient with its number, and why: from an examination's figures alone."""

import math
from dataclasses import dataclass

from benchmarks.doctor.examination import Examination, Growth

_WRONG, _LOST = 0.01, 0.01  # signs and precision that float32 may lose
_ALIKE = 0.99


@dataclass(frozen=True)
class Advice:
    """Attributes: `gradient`, or an option, as the command line takes it; `why` in one sentence."""

    gradient: str
    why: str


def advise(found: Examination) -> list[Advice]:
    """The most likely first; at least one."""
    told = [*_of_growth(found), *_of_agreement(found), *_of_variance(found), *_of_precision(found)]
    return told or [Advice("R", "nothing explodes, dies or disagrees: backpropagation can be used as it is")]


def _of_growth(found: Examination) -> list[Advice]:
    physics, both = found.growth["physics"], found.growth["both"]
    if physics.explodes_at is not None:
        far, factor = found.horizon - physics.explodes_at, physics.factor
        told, why = [], f"by the physics alone an adjoint grows a hundredfold in {far} steps, in M and C too; "
        if factor is not None and factor > 1:
            reason = (
                f"the physics alone multiplies an adjoint by {factor:.3g} a step, a hundredfold within {far} steps, "
                "which is in M and C as well; this takes as much away"
            )
            told, why = [Advice(f"decay(R, {1 / factor:.4g})", reason)], ""
        return [
            *told,
            Advice(
                f"clip-norm(R, {_short(found.final_adjoint)})",
                f"{why}no adjoint then is larger than those that the last step sends back, "
                f"{_short(found.final_adjoint)}",
            ),
            Advice(f"truncate(R, {far})", f"what comes from more than {far} steps later has grown a hundredfold"),
        ]
    if both.explodes_at is not None:
        ratio = "" if both.factor is None else f", by {both.factor:.3g} a step,"
        return [
            Advice(
                "bisect(M, R)",
                f"with the policy's path an adjoint grows a hundredfold{ratio} and not by the physics alone: M keeps "
                "its size, and this adds R's direction at that size",
            ),
            Advice("C", "the same, kept where M and R agree in sign"),
            Advice("M", "without the policy's path, at the cost of one sweep"),
        ]
    if both.dies_at is not None:
        window = _reach(both, found.horizon)
        return [
            Advice(
                f"truncate(R, {window})",
                f"an adjoint shrinks to a hundredth within {window} steps, so early steps are told nothing of later "
                "ones: longer sweeps add nothing, and a cost at every step tells more than one at the end",
            )
        ]
    return []


def _of_agreement(found: Examination) -> list[Advice]:
    cosine = found.cosines.get("R M", 1.0)
    if found.policy_share == 0.0:
        why = "the policy's path carries nothing, as where its last layer is still zero: R and M are one"
        return [Advice("R", f"{why}; examine a run that has trained a little")]
    if cosine > _ALIKE and found.growth["physics"].explodes_at is None:
        return [Advice("M", f"it points where R does (cosine {cosine:.3f}) and needs no derivative of the policy")]
    if found.agreeing < 0.8 and found.growth["both"].explodes_at is None:
        return [
            Advice(
                "bisect(M, R)",
                f"M and R agree in sign on {found.agreeing:.0%} of the parameters and {found.policy_share:.0%} of the "
                "gradient comes by the policy's path: their directions at one size",
            )
        ]
    return []


def _of_variance(found: Examination) -> list[Advice]:
    last = found.variances[-1]
    first = min(last.full, last.physics)
    if last.score is None or not last.score < first:
        return []
    return [
        Advice(
            f"mix(R, score({found.sigma:g}, {found.copies}))",
            f"over the whole horizon estimates of zeroth order vary less ({last.score:.2g} of their mean's square) "
            f"than those of first order ({first:.2g})",
        )
    ]


def _of_precision(found: Examination) -> list[Advice]:
    lost = {} if found.single is None else found.single
    for name, told in lost.items():
        if not told["error"] < _LOST or told["wrong_signs"] > _WRONG:
            return [
                Advice(
                    "--precision float64",
                    f"float32 gets {name} wrong by {told['error']:.2g} of its size and {told['wrong_signs']:.1%} of "
                    "its signs",
                )
            ]
    return []


def _reach(growth: Growth, horizon: int) -> int:
    """Within how many steps an adjoint dies."""
    return horizon - growth.dies_at if growth.dies_at is not None else horizon


def _short(value: float) -> str:
    """A number in two figures, as the grammar of gradients reads it."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:g}" if math.isfinite(rounded) else "1"
