"""What users hand over by mistake to trainers and rollouts: estimators, members, systems, policies and settings."""

# pyright: reportArgumentType=false

import dataclasses
import re

import pytest
import torch

import engine
from engine import FULL, PHYSICS_ONLY, CartPole, LinearSystem, Rollout, SettingError, ShapeError
from policies import Linear
from training import (
    Backpropagation,
    Member,
    SignAgreement,
    Trainer,
    TrainingSettings,
    build_task,
    gradient_named,
)

SYSTEM = LinearSystem([[0.9, 0.1], [0.0, 0.8]], [[0.0], [1.0]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Member("R"), r"got 'R'; write gradient_named\('R'\)\.estimator"),
        (lambda: Member(estimator=FULL), r"got a PathRule, which is an adjoint rule; write Backpropagation\(rule\)"),
        (lambda: Member(gradient_named("R")), r"got a Gradient; give its \.estimator"),
        (lambda: Member(Backpropagation), r"got the class Backpropagation; make one: Backpropagation\(\.\.\.\)"),
        (lambda: Member(None), "got None; it needs a tuple of rules and a method combine"),
        (lambda: Member(3), "got 3; it needs"),
        (lambda: SignAgreement(FULL, PHYSICS_ONLY), "got a PathRule, which is an adjoint rule"),
        (lambda: SignAgreement(Backpropagation(FULL), "M"), "got 'M'; write gradient_named"),
    ],
)
def test_what_is_no_estimator_is_named(build, message):
    with pytest.raises(
        SettingError, match=r"Expected a gradient estimator such as Backpropagation\(FULL\), " + message
    ):
        build()


class Combining:
    """An estimator made of a function."""

    rules = (FULL,)

    def __init__(self, function):
        self.function = function

    def combine(self, gradients):
        return self.function(gradients[FULL])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda g: g.norm(dim=1), ShapeError, r"a Combining to combine gradients .*, got shape \[2\]"),
        (lambda g: g[0], ShapeError, r"got shape \[2\]"),
        (lambda g: g.half(), ShapeError, r"got torch\.float16"),
        (lambda g: None, ShapeError, "got None"),
        (lambda g: g.mul_(2.0), SettingError, "an estimator that leaves the gradients as they are, got a Combining"),
    ],
)
def test_an_estimator_that_combines_to_something_else_is_refused(function, error, message):
    task = build_task("integrator", horizon=2)
    trainer = Trainer(task, [Member(Combining(function))] * 2, TrainingSettings(2, 2, 2))
    with pytest.raises(error, match=message):
        trainer.run_epoch()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Rollout("cart-pole", None, 1, 1), "Expected a system such as CartPole(1), got 'cart-pole'."),
        (lambda: Rollout(CartPole, None, 1, 1), "Expected a system such as CartPole(1), got the class CartPole."),
        (
            lambda: Rollout(build_task("integrator"), None, 1, 1),
            "Expected a system such as CartPole(1), got a Task; give its .system.",
        ),
        (
            lambda: Rollout(SYSTEM, torch.nn.Linear(2, 1), 1, 1),
            "Expected a policy such as MLP or Linear, got a Linear; wrap it as ModulePolicy(module, state_shape, "
            "control_shape).",
        ),
        (lambda: Rollout(SYSTEM, lambda x: x, 1, 1), "Expected a policy such as MLP or Linear, got function <lambda>."),
        (lambda: Rollout(SYSTEM, Linear, 1, 1), "Expected a policy such as MLP or Linear, got the class Linear."),
        (lambda: Rollout(SYSTEM, None, 1, 1), "Expected a policy such as MLP or Linear, got None."),
        (
            lambda: Trainer(build_task("integrator"), Member()),
            "Expected a list of members, got one Member; write [Member(...)].",
        ),
        (
            lambda: Trainer(build_task("integrator"), ["R"]),
            "Expected a list of members such as [Member()], got one with 'R'.",
        ),
        (
            lambda: Trainer(build_task("integrator"), 3),
            "Expected a list of members such as [Member()], got 3.",
        ),
        (
            lambda: Trainer("integrator", [Member()]),
            "Expected a task, got 'integrator'; write build_task('integrator').",
        ),
        (lambda: Trainer(SYSTEM, [Member()]), "Expected a task, got a LinearSystem."),
        (
            lambda: Trainer(build_task("integrator"), [Member()], {"batch_size": 8}),
            "Expected settings as TrainingSettings(...), got a dict.",
        ),
        (
            lambda: dataclasses.replace(build_task("integrator"), system="integrator"),
            "Expected a system such as CartPole(1), got 'integrator'.",
        ),
    ],
)
def test_what_belongs_elsewhere_is_named(build, message):
    with pytest.raises(engine.EvenflowError, match=f"^{re.escape(message)}$"):
        build()
