"""The trial of a user's kernels when a system is first prepared: is it a step, and is its adjoint the step's?

Everything runs in a child of the process where that can be (`engine.trials.isolation`): neither a crash nor what the
kernels write to fields of the user's reaches the process. On the CPU the stacks of Taichi's automatic differentiation
are sized here, by trying. Nothing here runs again once a verdict is there.
"""

import contextlib
import warnings
from collections.abc import Callable

import torch
from taichi.lang import impl

from engine import runtime
from engine.errors import AdjointError, EvenflowError, EvenflowWarning, KernelError
from engine.launch import outside
from engine.trials.bench import Bench, OutsideError
from engine.trials.contract import POINTS, Points, check_every_sample, check_pull_back, check_step
from engine.trials.isolation import Crash, Slow, available, isolated
from engine.trials.loops import has_inner_loops
from engine.trials.signature import check_kernel

# Entries for each overwritten local. Size costs nothing but the room on a thread's stack, so the first is generous.
_STACKS = (2**16, 2**18, 2**20, 2**12)


class Trial:
    """The verdicts on one `KernelSystem`: an error that is raised whenever it is asked again, or nothing.

    Attributes:
        settings: compile settings of the adjoint that were found to serve.
    """

    def __init__(self, system):
        self.system, self.settings = system, {}
        self._verdicts: dict[str, EvenflowError | None] = {}
        self._largest = {"step": 0, "pull_back": 0}  # batches that were tried

    def arguments(self) -> None:
        """Check once that the kernels take what they will be given."""
        self._once("arguments", self._check_arguments)

    def step(self, batch: int, given: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Try the step once: arguments, inputs untouched, outputs assigned whatever they held, no memory."""
        self.arguments()
        # One sample cannot show what it takes of others; more of them later can.
        alone = batch == 1 and "step" not in self._verdicts
        self._once("step of one" if alone else "step", lambda: self._try_step(batch, given))
        self._try_larger("step", batch, given)

    def pull_back(self, batch: int, given: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Try the pull-back once, after the step: the same, and central differences."""
        self.step(batch, given)
        alone = batch == 1 and "pull_back" not in self._verdicts
        self._once("pull_back of one" if alone else "pull_back", lambda: self._try_pull_back(batch, given))
        self._try_larger("pull_back", batch, given)

    def _try_larger(self, role: str, batch: int, given: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Try every sample of a batch that is larger than those before."""
        if batch <= max(self._largest[role], POINTS):  # a trial shows as many
            return
        self._largest[role] = batch
        pulls_back = role == "pull_back"

        def work() -> None:
            bind = (self.system._bind_pull_back,) if pulls_back else ()
            bench = Bench(self.system, batch, self.system._bind_step, *bind)
            points = Points(self.system, given)
            self._isolated(role, lambda: check_every_sample(bench, points, pulls_back))

        self._once(f"{role} of {batch}", work)

    def assume(self) -> None:
        """Give the stacks of an adjoint that is not tried the size that a trial begins with."""
        self.arguments()
        if not self.settings and self._sizes_stacks():
            self.settings = {"ad_stack_size": runtime.current().ad_stack_size or _STACKS[0]}

    def _sizes_stacks(self) -> bool:
        """Whether the adjoint is Taichi's on the CPU and keeps locals that a loop overwrites."""
        system = self.system
        automatic = system._pull_back is None and runtime.current().backend == "cpu"
        return automatic and has_inner_loops(system._step._primal)

    def _once(self, what: str, attempt: Callable[[], None]) -> None:
        if what not in self._verdicts:
            verdict: EvenflowError | None = None
            kept, self.system._buffers = self.system._buffers, None
            try:
                with torch.inference_mode(False), torch.no_grad():
                    attempt()
            except EvenflowError as error:
                verdict = error
            except Slow as slow:
                warnings.warn(
                    f"The trial of system {self.system.name!r} was left after {slow.seconds:.0f} s, so that its {what} "
                    "is unchecked; ef.gradcheck takes all the time it needs at a few states.",
                    EvenflowWarning,
                    stacklevel=2,
                )
            finally:
                self.system._buffers = kept
            self._verdicts[what] = verdict
        verdict = self._verdicts[what]
        if verdict is not None:
            raise type(verdict)(str(verdict))

    def _check_arguments(self) -> None:
        system = self.system
        arrays = [(name, 1 + len(shape)) for name, shape in _arrays(system)[:3]]
        check_kernel(system._step, "step", system.name, arrays, system._constants)
        if system._pull_back is not None:
            every = [(name, 1 + len(shape)) for name, shape in _arrays(system)[3:]]
            check_kernel(system._pull_back, "pull_back", system.name, [*arrays[:2], *every], system._constants)

    def _try_step(self, batch: int, given: tuple[torch.Tensor, torch.Tensor]) -> None:
        system = self.system
        bench = Bench(system, batch, system._bind_step)
        points = Points(system, given)
        self._isolated("step", lambda: check_step(bench, points))

    def _try_pull_back(self, batch: int, given: tuple[torch.Tensor, torch.Tensor]) -> None:
        system, points = self.system, Points(self.system, given)
        automatic = system._pull_back is None
        if not (available() and self._sizes_stacks()):
            self.assume()
            bench = Bench(system, batch, system._bind_step, system._bind_pull_back)
            self._isolated("pull_back", lambda: check_pull_back(bench, points, automatic))
            return
        asked = runtime.current().ad_stack_size
        sizes = _STACKS if asked is None else (asked, *(size for size in _STACKS if size > asked))
        told = ""
        for size in sizes:
            self.settings = {"ad_stack_size": size}
            bench = Bench(system, batch, system._bind_step, system._bind_pull_back)
            try:
                isolated(lambda bench=bench: check_pull_back(bench, points, automatic))
            except Crash:
                continue
            except EvenflowError as error:
                if str(error) == told:  # whatever the size, so that it is not the size
                    raise
                told = str(error)
            else:
                if size == asked or asked is None:
                    return
                raise AdjointError(
                    f"Expected the loops of system {system.name!r} to fit autodiff stacks of {asked} entries, got more "
                    f"values of a local to keep; pass ef.init(ad_stack_size={size}) or leave ad_stack_size out."
                )
        self.settings = {}
        raise AdjointError(
            f"Expected the loops of system {system.name!r} to fit the stacks of Taichi's automatic differentiation, "
            f"got more values of a local to keep than {max(sizes)} entries hold, or too many locals for that; shorten "
            "the loops, let the innermost add straight to an array, or write the adjoint as a pull_back kernel."
        )

    def _isolated(self, role: str, work: Callable[[], None]) -> None:
        """Run `work`; a crash or an access outside of the arrays is looked at again with Taichi's bounds checks."""
        try:
            isolated(work)
        except OutsideError:
            self._find_outside(role)
            raise
        except Crash as crash:
            self._find_outside(role)
            raise KernelError(
                f"Expected the {role} kernel of system {self.system.name!r} to run, got {crash} in a trial; check its "
                "indices."
            ) from None

    def _find_outside(self, role: str) -> None:
        """Raise a KernelError that says which array is left and where, if Taichi's checks find it."""
        system, name, owner = self.system, role, f" of system {self.system.name!r}"
        if not available():
            return
        kernel = system._step if role == "step" or system._pull_back is None else system._pull_back
        own = 0 if getattr(kernel, "_kernel_owner", None) is None else 1  # self of a method
        names = [parameter.name for parameter in kernel._primal.arguments[own:]]
        before, self.settings = self.settings, {**self.settings, "check_out_of_bound": True}
        try:
            bench = Bench(system, 2, system._bind_step, None if role == "step" else system._bind_pull_back)
        finally:
            self.settings = before

        def work() -> None:
            impl.get_runtime().prog.config().debug = True  # in the child alone: without it nothing is reported
            points = Points(system, None)
            try:
                bench.step(points.states, points.controls)
                if role != "step":
                    bench.pull_back(points.states, points.controls, points.states)
            except EvenflowError:
                pass
            except Exception as error:  # Taichi's own kind, which is none of Python's
                raise KernelError(outside(str(error), name, owner, names)) from error

        with contextlib.suppress(Crash, Slow):
            isolated(work)


def _arrays(system) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of what step and, from the fourth on, pull_back take."""
    state, control = system.state_shape, system.control_shape
    return [
        ("state", state),
        ("control", control),
        ("next_state", state),
        ("next_adjoint", state),
        ("adjoint", state),
        ("cotangent", control),
    ]
