"""Policies: torch modules from states to controls. They know nothing of the engine."""

from policies.architecture import policy_from
from policies.convolutional import Convolutional
from policies.linear import Linear
from policies.mlp import MLP
from policies.module import ModulePolicy
from policies.open_loop import OpenLoop
from policies.particles import DeepSets, Moments
from policies.policy import Policy, PolicyError, PolicyTrace
from policies.polynomial import Polynomial

PolicyRecord = PolicyTrace  # its name before

__all__ = [
    "MLP",
    "Convolutional",
    "DeepSets",
    "Linear",
    "ModulePolicy",
    "Moments",
    "OpenLoop",
    "Policy",
    "PolicyError",
    "PolicyRecord",
    "PolicyTrace",
    "Polynomial",
    "policy_from",
]
