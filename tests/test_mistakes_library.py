"""Mistakes in Python, each with the sentence it ends in; test_mistakes_command_line has those of the command line."""

# Wrong types are the point.
# pyright: reportArgumentType=false

import copy
import math
import pickle
from types import SimpleNamespace

import pytest
import taichi as ti
import torch
from torch import nn

import evenflow as ef

pytestmark = pytest.mark.float64

TASK = ef.build_task("lqr", horizon=3)
ARRAY = ti.types.ndarray(ndim=2)


def policy(**options):
    return ef.Linear((2,), (1,), dtype=torch.float64, **options)


def rollout(controller=None, **options):
    return ef.Rollout(TASK.system, controller or policy(), 3, 4, **options)


def swept(cost=None, rules=(ef.FULL,), change=lambda rollout: None, **options):
    """A rollout and its adjoint, with something done in between."""
    one = rollout(**options)
    one(torch.ones(4, 2, dtype=torch.float64))
    change(one)
    return one.backward(list(rules), cost or TASK.objective)


def trained(members=None, **settings):
    return ef.Trainer(TASK, members or [ef.Member()], ef.TrainingSettings(**settings))


def costs(**methods):
    """An objective with these methods."""
    return type("Costs", (ef.Objective,), {name: staticmethod(method) for name, method in methods.items()})()


EXPERIMENT = ef.Experiment("lqr", {"horizon": 3}, epochs=1)


def transformed():
    losses = ef.differentiable(rollout(), objective=TASK.objective)
    return torch.func.grad(lambda initial: losses(initial).sum())(torch.ones(4, 2, dtype=torch.float64))


class Ruled:
    uses_physics = uses_policy = True

    def __init__(self, result):
        self.result = result

    def __call__(self, direct, physics, policy, t):
        return self.result(direct)


class Net(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.linear, self.act = nn.Linear(2, 1).double(), act

    def forward(self, x):
        return self.act(self, x)


def module(act):
    return rollout(ef.ModulePolicy(Net(act), (2,), (1,)))


@ti.kernel
def forgetful(x: ARRAY, u: ARRAY, y: ARRAY, dt: float):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0] + dt * u[b, 0]


@ti.kernel
def early(x: ARRAY, u: ARRAY, y: ARRAY):
    for b in range(x.shape[0]):
        y[b, 0] = x[b, 0]
        if x[b, 0] > 5.0:
            continue
        y[b, 0] = x[b, 0] + u[b, 0]


def kernel(step, size, *constants):
    system = ef.KernelSystem(step, (size,), (1,), constants)
    return system.pull_back(*(torch.ones(1, n, dtype=torch.float64) for n in (size, 1, size)))


MISTAKES = {
    # Names and numbers.
    "no such task": (lambda: ef.build_task("cart-pool"), "a task among cart-pole, .* \\(perhaps cart-pole\\)"),
    "no such option": (lambda: ef.build_task("cart-pole", polls=2), "options of cart-pole among poles"),
    "half a pole": (lambda: ef.build_task("cart-pole", poles=1.5), "at least 1 pole, got 1.5"),
    "a step of NaN": (lambda: ef.build_task("cart-pole", dt=math.nan), "a time step dt above 0 s, got nan"),
    "too many poles": (lambda: rollout_of_poles(3000), "at most 128"),
    "a window where a rule is due": (lambda: ef.Truncate(10), "such as FULL as the first argument of Truncate, got 10"),
    "half a window": (lambda: ef.Truncate(window=2.5), "a window of at least 1 step and below 2³¹, got 2.5"),
    "weights of NaN": (lambda: ef.PathRule(math.nan), "finite physics_weight, got nan"),
    "a negative limit": (lambda: ef.ClipNorm(limit=-1.0), "a limit above 0, got -1.0"),
    "half an epoch": (lambda: trained().fit(2.5), "at least 1 epoch, got 2.5"),
    "no such optimiser": (lambda: trained(optimiser="adamw"), "an optimiser among adam, adam-torch"),
    "uneven batches": (lambda: trained(train_samples=20), "whole mini-batches of 8, got 20; take 16 or 24"),
    "an infinite rate": (lambda: ef.Member(learning_rate=math.inf), "learning rates that are finite"),
    "a half unit": (lambda: ef.MLP((2,), (1,), (1.5,)), "hidden layers of at least 1 unit"),
    # One thing where another is meant.
    "a letter for an estimator": (lambda: trained([ef.Member("R")]), "gradient_named\\('R'\\).estimator"),
    "a rule for an estimator": (lambda: ef.Member(ef.FULL), "Backpropagation\\(rule\\)"),
    "estimators as rules": (
        lambda: ef.Member(SimpleNamespace(rules=(ef.Backpropagation(),), combine=dict)),
        "Expected adjoint rules or scores, got a Backpropagation.*; combine its rules instead",
    ),
    "rules to agree": (lambda: ef.SignAgreement(ef.FULL, ef.PHYSICS_ONLY), "Backpropagation\\(rule\\)"),
    "a member for a list": (lambda: ef.Trainer(TASK, ef.Member()), "write \\[Member\\(...\\)\\]"),
    "a task for a system": (lambda: ef.Rollout(TASK, policy(), 3, 4), "give its .system"),
    "modules for a module": (
        lambda: ef.ModulePolicy([nn.Linear(2, 1)], (2,), (1,)),
        "a torch module, or a function that builds one, got a list",
    ),
    "a module for a policy": (lambda: rollout(nn.Linear(2, 1)), "wrap it as ModulePolicy"),
    "a text for a rule": (lambda: swept(rules=("R",)), "an adjoint rule"),
    "nonsense for a gradient": (lambda: ef.gradient_named("clip-norm(C, 1)"), "which combines whole sweeps"),
    "a name for an experiment": (lambda: ef.train("lqr", "run"), "such as Experiment\\('cart-pole'\\), got 'lqr'"),
    "no directory": (lambda: ef.train(EXPERIMENT, None), "a run directory as a path, got None"),
    "a number for a run": (lambda: ef.load_task(3), "a run directory as a path, got 3"),
    "a number for a checkpoint": (lambda: ef.describe_checkpoint(3), "a checkpoint as a path, got 3"),
    "a number for a plug-in": (lambda: ef.load_plugin(3), "a plug-in as a path, got 3"),
    "a number for progress": (lambda: ef.train(EXPERIMENT, "run", 3), "progress as a function of a trainer and a rec"),
    "a task to gradcheck": (lambda: ef.gradcheck(TASK, torch.ones(1), torch.ones(1)), "give its .system"),
    "a policy for no system": (lambda: ef.policy_for(3), "a system such as CartPole\\(1\\), got 3"),
    # Experiments.
    "an experiment with no task": (lambda: ef.Experiment("cart-pool"), "a task among .* \\(perhaps cart-pole\\)"),
    "options that it has not": (lambda: ef.Experiment("lqr", {"poles": 2}), "options of lqr among .*, got 'poles'"),
    "a text for an option": (lambda: ef.Experiment("lqr", {"horizon": "3"}), "horizon as int, got '3'"),
    "a list of options": (lambda: ef.Experiment("lqr", [3]), "options of a task as a dictionary, got \\[3\\]"),
    "a dictionary of settings": (lambda: ef.Experiment("lqr", settings={}), "such as TrainingSettings\\(batch_size=8"),
    "a budget of melons": (lambda: ef.TrainingSettings(memory="melon"), "such as 512MiB or 2GiB, got 'melon'"),
    "a copy of a trainer": (lambda: copy.deepcopy(trained()), "Trainer to stay .* a copy or a pickle"),
    "a pickled rollout": (lambda: pickle.dumps(rollout()), "Rollout to stay .* a copy or a pickle"),
    # Objectives and rules.
    "a mean of costs": (lambda: swept(costs(final=lambda x: x.mean())), "final cost .* of shape \\[4\\]"),
    "costs of one step": (lambda: swept(costs(running=lambda x, u, t: x[0, :, 0])), "of shape \\[3, 4\\]"),
    "no cost at all": (lambda: swept(object()), "derive it from Objective"),
    "a detached cost": (lambda: swept(costs(final=lambda x: x.detach().square().sum(1))), "have no gradient"),
    "a cost that is not returned": (lambda: swept(costs(final=lambda x: None)), "whose methods both return None"),
    "costs in place": (lambda: swept(costs(final=lambda x: x.mul_(2).sum(1))), "states and controls as they are"),
    "an adjoint of one column": (lambda: swept(rules=(Ruled(lambda d: d[:, :1]),)), "an adjoint from rule"),
    "an adjoint of None": (lambda: swept(rules=(Ruled(lambda d: None),)), "an adjoint from rule"),
    # Memory.
    "a budget of nothing": (lambda: rollout(memory="1KiB"), "a memory budget of at least"),
    "a budget of bananas": (lambda: rollout(memory="banana"), "such as 512MiB or 2GiB, got 'banana'"),
    "all the memory there is": (lambda: ef.Rollout(TASK.system, policy(), 10**6, 10**6), "Expected"),
    # Policies.
    "dropout": (lambda: module(lambda net, x: net.linear(nn.functional.dropout(x))), "draws random numbers"),
    "the batch's mean": (lambda: module(lambda net, x: net.linear(x - x.mean(0))), "other samples of the batch"),
    "a detached policy": (lambda: module(lambda net, x: net.linear(x).detach()), "Expected a gradient"),
    "states in place": (lambda: module(lambda net, x: net.linear(x.mul_(2))), "leaves states as they are"),
    "another policy's size": (lambda: rollout(ef.Linear((3,), (1,), dtype=torch.float64)), "states of shape \\[2\\]"),
    "another precision": (lambda: rollout(ef.Linear((2,), (1,), dtype=torch.float32)), "as the runtime is"),
    "changed before the sweep": (
        lambda: swept(change=lambda one: one.controller.theta.data.add_(1.0)),
        "since",
    ),
    "states without members": (lambda: policy()(torch.ones(4, 2)), "of shape \\[1, samples, 2\\], got \\[4, 2\\]; add"),
    "states of two members": (lambda: policy()(torch.ones(2, 4, 2)), "of shape \\[1, samples, 2\\], got \\[2, 4, 2\\]"),
    "a list of states": (lambda: policy()([1.0, 2.0]), "states as a torch tensor, got list"),
    "a member that is not there": (lambda: policy().initialise(5, torch.Generator()), "a member from 0 to 0, got 5"),
    "a seed for a generator": (lambda: policy().initialise(0, 3), "a generator such as .*, got 3"),
    "a transform of torch.func": (transformed, "torch's autograd"),
    # Kernels of a user's.
    "no constants": (lambda: kernel(forgetful, 1), "Expected 1 constants \\(dt\\) .* got 0"),
    "a text for a constant": (lambda: kernel(forgetful, 1, "0.1"), "constant 'dt' .* got '0.1'"),
    "a component forgotten": (lambda: kernel(forgetful, 2, 0.1), "next_state\\[1\\] left as it was"),
    "continue": (lambda: kernel(early, 1), "`continue`"),
}  # fmt: skip


def rollout_of_poles(poles):
    task = ef.build_task("cart-pole", poles=poles)
    return task.system.step(*(torch.zeros(1, n, dtype=torch.float64) for n in (2 + 2 * poles, 1)))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_sentence(name):
    act, words = MISTAKES[name]
    with pytest.raises((ef.EvenflowError, ef.PolicyError), match=words) as error:
        act()
    message = str(error.value)
    assert message.startswith("Expected ")
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 500


def test_there_are_enough_of_them():
    """With those of the command line more than sixty."""
    import test_mistakes_command_line as command_line

    tables = [value for value in vars(command_line).values() if isinstance(value, dict | list) and len(value) > 10]
    assert len(MISTAKES) + max(map(len, tables)) > 60
