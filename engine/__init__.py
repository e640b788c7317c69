"""The engine: runtime, systems, rollouts and their adjoints. It knows nothing of policies."""

import os

# Read by Taichi and by OpenMP as they are loaded.
os.environ.setdefault("ENABLE_TAICHI_HEADER_PRINT", "False")
os.environ.setdefault("TI_SKIP_VERSION_CHECK", "ON")
# OpenMP threads that wait in a long spin stall each other for seconds once another process takes a core; threads that
# never spin take 80 µs to wake. This many turns, some 20 µs, serve both.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

from engine import start  # noqa: F401  # first: loads Taichi, or says what it lacks
from engine.controller import Controller, ControllerTrace
from engine.errors import (
    AdjointError,
    BackendError,
    BudgetError,
    EvenflowError,
    EvenflowWarning,
    KernelError,
    LibraryError,
    SettingError,
    ShapeError,
)
from engine.gradcheck import gradcheck
from engine.memory import PeakMemory, format_bytes
from engine.noise import Noise
from engine.observation import Observation
from engine.one_process import OneProcess
from engine.plan import MemoryPlan, Segment
from engine.rollout import Rollout
from engine.rule_variants import Balance, ClipValue, DecayRate, EveryStep, KeepSize, RandomCut, StepAgreement
from engine.rules import (
    FULL,
    ONE_STEP,
    PHYSICS_ONLY,
    POLICY_ONLY,
    AdjointRule,
    ClipNorm,
    Decay,
    PathRule,
    PerSample,
    Truncate,
)
from engine.runtime import Runtime, available_backends, current, init
from engine.sweep import Gradients
from engine.system import KernelSystem, System
from engine.systems import (
    SYSTEMS,
    BallWall,
    CartPendulum,
    CartPole,
    Fluid,
    Guidance,
    Held,
    Hopper,
    Integrator,
    KuramotoSivashinsky,
    LinearSystem,
    NBody,
    QuantumBox,
    Swarm,
    register_system,
)
from engine.tape import RolloutTape
from engine.trajectory import Cost, Trajectory
from engine.vector_system import VectorSystem

ControllerRecord = ControllerTrace  # its name before

__all__ = [
    "FULL",
    "ONE_STEP",
    "PHYSICS_ONLY",
    "POLICY_ONLY",
    "SYSTEMS",
    "AdjointError",
    "AdjointRule",
    "BackendError",
    "Balance",
    "BallWall",
    "BudgetError",
    "CartPendulum",
    "CartPole",
    "ClipNorm",
    "ClipValue",
    "Controller",
    "ControllerRecord",
    "ControllerTrace",
    "Cost",
    "Decay",
    "DecayRate",
    "EvenflowError",
    "EvenflowWarning",
    "EveryStep",
    "Fluid",
    "Gradients",
    "Guidance",
    "Held",
    "Hopper",
    "Integrator",
    "KeepSize",
    "KernelError",
    "KernelSystem",
    "KuramotoSivashinsky",
    "LibraryError",
    "LinearSystem",
    "MemoryPlan",
    "NBody",
    "Noise",
    "Observation",
    "OneProcess",
    "PathRule",
    "PeakMemory",
    "PerSample",
    "QuantumBox",
    "RandomCut",
    "Rollout",
    "RolloutTape",
    "Runtime",
    "Segment",
    "SettingError",
    "ShapeError",
    "StepAgreement",
    "Swarm",
    "System",
    "Trajectory",
    "Truncate",
    "VectorSystem",
    "available_backends",
    "current",
    "format_bytes",
    "gradcheck",
    "init",
    "register_system",
]
