"""From the cotangents of a segment's controls to the gradient of the parameters: Σ_t Πᵀ μ_t."""

import torch

from engine import ended
from engine.controller import PullsBackSamples
from engine.plan import Segment
from engine.trajectory import Trajectory


def pull_back_parameters(
    rollout: Trajectory, part: Segment, cotangents: torch.Tensor, samples: slice, gradient: torch.Tensor
) -> None:
    """Add Σ Πᵀ μ to `gradient` [members, n]; done again with care if rows with μ = 0 may have spoilt it.

    `cotangents` are the buffer [slots, B, ...], here and below.
    """
    several = len(rollout.plan.segments) > 1
    with torch.inference_mode(False):  # autograd may add to it
        before = gradient.clone() if several else None
    for first, last in part.own_blocks(rollout.block, rollout.horizon):
        rollout.trace.pull_back_parameters(
            first, last, rollout.states[first:last], cotangents[first:last], samples, gradient
        )
    if rollout.finite(gradient):
        return
    bad = ~torch.isfinite(gradient).all(1)
    silent = (cotangents[part.first : part.last] == 0).flatten(2).all(2).any(0)
    if bool((silent.view(len(gradient), -1).any(1) & bad).any()):
        with torch.inference_mode(False):
            again = torch.zeros_like(gradient) if before is None else before
        ended.pull_back_parameters(rollout, part, cotangents, samples, again)
        gradient[bad] = again[bad]


def pull_back_samples(
    rollout: Trajectory, part: Segment, cotangents: torch.Tensor, samples: slice, gradients: torch.Tensor
) -> None:
    """Add Πᵀ μ of every sample by itself to `gradients` [members, samples, n].

    At once where the trace can, else one sample of every member after another, as where something is not finite.
    """
    trace = rollout.trace
    if isinstance(trace, PullsBackSamples):
        with torch.inference_mode(False):
            before = gradients.clone() if len(rollout.plan.segments) > 1 else None
        for first, last in part.own_blocks(rollout.block, rollout.horizon):
            trace.pull_back_samples(first, last, rollout.states[first:last], cotangents[first:last], samples, gradients)
        if rollout.finite(gradients):
            return
        gradients.copy_(torch.zeros_like(gradients) if before is None else before)
    own, each = cotangents[part.first : part.last], gradients.shape[1]
    kept = own.clone()
    for sample in range(each):
        own.zero_()[:, sample::each] = kept[:, sample::each]
        with torch.inference_mode(False):
            found = torch.zeros_like(gradients[:, sample])
        pull_back_parameters(rollout, part, cotangents, samples, found)
        gradients[:, sample] += found
    own.copy_(kept)
