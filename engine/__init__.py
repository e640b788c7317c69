"""The engine: runtime, systems, rollouts and their adjoints. It knows nothing of policies."""

from engine.controller import Controller, ControllerRecord
from engine.errors import (
    AdjointError,
    BackendError,
    BudgetError,
    EvenflowError,
    RunError,
    SettingError,
    ShapeError,
)
from engine.memory import MemoryPlan, PeakMemory, Segment, format_bytes
from engine.rollout import Rollout
from engine.rules import (
    FULL,
    ONE_STEP,
    PHYSICS_ONLY,
    POLICY_ONLY,
    AdjointRule,
    ClipNorm,
    Decay,
    PathRule,
    Truncate,
)
from engine.runtime import Runtime, available_backends, current, init
from engine.sweep import Gradients
from engine.system import KernelSystem, System
from engine.systems import SYSTEMS, CartPole, Integrator, LinearSystem
from engine.tape import RolloutTape
from engine.trajectory import Cost, Trajectory
from engine.vector_system import VectorSystem

__all__ = [
    "FULL",
    "ONE_STEP",
    "PHYSICS_ONLY",
    "POLICY_ONLY",
    "SYSTEMS",
    "AdjointError",
    "AdjointRule",
    "BackendError",
    "BudgetError",
    "CartPole",
    "ClipNorm",
    "Controller",
    "ControllerRecord",
    "Cost",
    "Decay",
    "EvenflowError",
    "Gradients",
    "Integrator",
    "KernelSystem",
    "LinearSystem",
    "MemoryPlan",
    "PathRule",
    "PeakMemory",
    "Rollout",
    "RolloutTape",
    "RunError",
    "Runtime",
    "Segment",
    "SettingError",
    "ShapeError",
    "System",
    "Trajectory",
    "Truncate",
    "VectorSystem",
    "available_backends",
    "current",
    "format_bytes",
    "init",
]
