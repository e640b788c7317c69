"""Any torch module without memory as a policy, of one member or of many."""

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap

from policies.checks import check_draw, floating, size
from policies.policy import AutogradTrace, Policy, PolicyError, PolicyTrace, make_usable, switches_of
from policies.redraw import built, check_same_buffers, redrawn

_owners: weakref.WeakKeyDictionary[nn.Module, weakref.ref] = weakref.WeakKeyDictionary()
"""Of each module that was linked, the policy whose parameters its own are views of."""
_WITH_MEMORY = (nn.RNNBase, nn.RNNCellBase)
_MIX_ROWS_OR_DRAW = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class ModulePolicy(Policy):
    """u = module(x) for a memoryless torch module that maps [b, *state_shape] to [b, *control_shape].

    Without `members` there is one, which begins with the module's parameters. These become views of `theta`, so that
    the module itself is trained. Whichever of the two is replaced later, by assignment, loading or casting, is what
    both hold from the next call on.

    With `members` the module is their pattern, and `initialise` draws each member's parameters anew: by
    `reset_parameters` of every part, or by building another module. Buffers, hooks and modes are shared.

    Parameters with `requires_grad=False` are left as they are.

    Args:
        module: each row of its output may depend on its own row alone. A function without arguments that builds such
            a module serves too; each member's is then built from its own seed.
        state_shape, control_shape: shapes of one sample's state and control.
        members: P, each of them mapped by `torch.vmap` if there are several.
        dtype, device: to which the module is moved; by default it stays as it is.
    """

    def __init__(
        self,
        module: nn.Module | Callable[[], nn.Module],
        state_shape: Sequence[int],
        control_shape: Sequence[int],
        members: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        build = None if isinstance(module, nn.Module) else module
        if not isinstance(module, nn.Module):
            members, module = 1 if members is None else members, built(module)
        _check_module(module)
        if members is not None:
            members = size("a policy with at least 1 member", members)
            if build is None:
                redrawn(module, 0)
        if dtype is not None or device is not None:
            module.to(device=device, dtype=floating(dtype))
        parameters = dict(module.named_parameters())
        dtype, device = _kind(parameters)
        _check_apart(parameters)
        count = sum(parameter.numel() for parameter in parameters.values())
        super().__init__(state_shape, control_shape, count, members or 1, dtype, device)
        # Kept out of the registered submodules: theta is the one parameter that optimisers see.
        self._module, self._build, self._linked = (module,), build, members is None
        self._slices: dict[str, tuple[int, int, torch.Size]] = {}
        self._tied = _tied(module, parameters)
        self._shape = self.theta.shape
        offset = 0
        for name, parameter in parameters.items():
            self._slices[name] = (offset, offset + parameter.numel(), parameter.shape)
            offset += parameter.numel()
        with torch.inference_mode(False), torch.no_grad():
            make_usable(module)
            parameters = dict(module.named_parameters())
            for name, view in self._views(self.theta.data).items():
                view.copy_(parameters[name].data)
        self._link(parameters)
        if self.members > 1:
            self._check_mapped()

    @property
    def architecture(self) -> dict[str, Any]:
        return {**super().architecture, "module": type(self._module[0]).__name__}

    def _views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Parameters by name: of the one member if there is one, else of all [P, *shape]."""
        rows = flat[0] if len(flat) == 1 else flat
        front = rows.shape[:-1]
        return {name: rows[..., start:stop].view(front + shape) for name, (start, stop, shape) in self._slices.items()}

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        self.bind()
        return self.controls(state)

    def controls(self, state: torch.Tensor) -> torch.Tensor:
        """`forward` while nothing has been replaced since `bind`."""
        (module,) = self._module
        if self.members > 1:
            return vmap(self._control, randomness="different")(self._views(self.theta), state)
        if self._linked and not torch.is_grad_enabled():
            return _as_tensor(module(state[0])).unsqueeze(0)
        return self._control(self._views(self.theta), state[0]).unsqueeze(0)

    def _control(self, parameters: dict[str, torch.Tensor], state: torch.Tensor) -> torch.Tensor:
        """Controls [b, *control_shape] of one member with these parameters."""
        # Torch's own tying leaves a part that is there under two names with the wrong parameters.
        parameters = parameters | {name: parameters[own] for name, own in self._tied.items()}
        return _as_tensor(functional_call(self._module[0], parameters, (state,), tie_weights=False))

    def _check_mapped(self) -> None:
        """PolicyError if the module serves one member and torch cannot map it over several."""
        with torch.inference_mode(), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            states = self.theta.new_zeros(self.members, 2, *self.state_shape)
            try:
                self._control({name: value[0] for name, value in self._views(self.theta).items()}, states[0])
            except Exception:
                return  # it does not fit, which is said where it is first used
            try:
                self.controls(states)
            except Exception as error:
                said = next(iter(str(error).strip().splitlines()), "").split(". ")[0].rstrip(".")
                raise PolicyError(
                    f"Expected a module that torch.vmap maps over {self.members} members, got {type(error).__name__} "
                    f"({said}) from {type(self._module[0]).__name__}; write it without .item(), "
                    "branches on values and writes in place, or train one member at a time."
                ) from error

    def initialise(self, member: int, generator: torch.Generator) -> None:
        """Draw one member's parameters; a module given without `members` keeps its own, and nothing is drawn."""
        check_draw(member, self.members, generator)
        if self._linked:
            return
        (module,) = self._module
        seed = int(torch.randint(2**62, (), generator=generator))
        if self._build is None:
            drawn = redrawn(module, seed)
        else:
            fresh = built(self._build, seed)
            drawn = {name: parameter.detach() for name, parameter in fresh.named_parameters()}
            self._check_shapes(drawn, "each time one is built")
            check_same_buffers(module, fresh)
        with torch.inference_mode(False), torch.no_grad():
            for name, (start, stop, _) in self._slices.items():
                self.theta.data[member, start:stop].copy_(drawn[name].flatten())

    def trace(
        self, slots: int, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]
    ) -> PolicyTrace:
        self.check_fit(state_shape, control_shape)
        own = type(self).forward is ModulePolicy.forward
        return _ModuleTrace(self, batch) if own else AutogradTrace(self, batch)

    def _alone(self, member: int) -> nn.Module:
        (module,) = self._module
        alone = copy.deepcopy(module)
        views = self._views(self.theta.data[member : member + 1])
        for name, parameter in alone.named_parameters():
            parameter.data = views[name].clone()
        return alone

    def bind(self) -> None:
        """Let `theta` and the module's parameters be one again; the side that was replaced is the one that counts.

        Raises:
            PolicyError: if both were, or if the module's parameters have other names, shapes or kinds.
        """
        super().bind()
        found = dict(self._module[0].named_parameters())
        if not self._linked:
            self._check_count()
            if [parameter.shape for parameter in found.values()] != [shape for *_, shape in self._slices.values()]:
                self._check_shapes(found, "since the policy was built")
            return
        places, place = {name: _place(parameter) for name, parameter in found.items()}, _place(self.theta)
        if places == self._places and place == self._place:
            return
        owner = _owners[self._module[0]]()
        if owner is not None and owner is not self:
            raise PolicyError(
                f"Expected a module of this policy alone, got {type(self._module[0]).__name__}, which another has been "
                "given since; give each a module of its own, ModulePolicy(module, ..., members=1), or a function that "
                "builds one."
            )
        if any(parameter.is_inference() for parameter in found.values()):
            make_usable(self._module[0])
            found = dict(self._module[0].named_parameters())
            places = {name: _place(parameter) for name, parameter in found.items()}
        self._check_count()
        self._check_shapes(found, "since the policy was built")
        views = self._views(self.theta.data)
        apart = [name for name, view in views.items() if places[name] != _place(view)]
        replaced = [name for name in apart if places[name] != self._places[name]]
        if replaced and place != self._place:
            raise PolicyError(
                f"Expected policy.theta or parameters of its module to be replaced, got both ({', '.join(replaced)}); "
                "replace one of them."
            )
        if replaced:
            self._take(found, replaced)
        self._link(found)

    def _check_count(self) -> None:
        """PolicyError unless theta holds as many parameters of as many members as there were."""
        if self.theta.shape != self._shape:
            raise PolicyError(f"Expected policy.theta of shape {list(self._shape)}, got {list(self.theta.shape)}.")

    def _check_shapes(self, parameters: Mapping[str, torch.Tensor], when: str) -> None:
        """PolicyError unless these parameters have the names and shapes that members have."""
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        expected = {name: shape for name, (_, _, shape) in self._slices.items()}
        if shapes != expected:
            named = sorted({name for name, _ in shapes.items() ^ expected.items()})
            raise PolicyError(
                f"Expected the module's parameters as they were when the policy was built, got others at "
                f"{', '.join(named)} {when}; build another ModulePolicy."
            )

    def _take(self, parameters: dict[str, nn.Parameter], replaced: list[str]) -> None:
        """Copy the module's parameters that were replaced into theta."""
        dtype, device = _kind(parameters)
        _check_apart(parameters)
        with torch.inference_mode(False), torch.no_grad():
            if (dtype, device) != (self.theta.dtype, self.theta.device):
                self.theta.data = self.theta.data.to(device=device, dtype=dtype)
            views = self._views(self.theta.data)
            for name in replaced:
                views[name].copy_(parameters[name].data.clone())

    def _link(self, parameters: dict[str, nn.Parameter]) -> None:
        """Make the module's parameters views of theta, and note where they are."""
        if not self._linked:
            return
        with torch.inference_mode(False):
            views = self._views(self.theta.data)
            for name, parameter in parameters.items():
                parameter.data = views[name]
        _owners[self._module[0]] = weakref.ref(self)
        self._place = _place(self.theta)
        self._places = {name: _place(parameter) for name, parameter in parameters.items()}

    def check_behaviour(self, differentiated: bool) -> None:
        make_usable(self._module[0])
        super().check_behaviour(differentiated)

    def constants(self) -> dict[str, torch.Tensor]:
        (module,) = self._module
        return {f"buffer {name!r}": value for name, value in module.named_buffers()}

    def switches(self) -> tuple:
        return super().switches() + tuple(switches_of(part) for part in self._module[0].modules())

    def frozen(self) -> torch.Tensor | None:
        flags = [parameter.requires_grad for parameter in self._module[0].parameters()]
        if all(flags) or not self.theta.requires_grad:
            return super().frozen()
        mask = torch.ones(self.parameter_count, dtype=torch.bool, device=self.device)
        for name, parameter in self._module[0].named_parameters():
            start, stop, _ = self._slices[name]
            mask[start:stop] = not parameter.requires_grad
        return mask

    def train(self, mode: bool = True) -> "ModulePolicy":
        """Switch the module to training or evaluation mode, as `nn.Module.train` does."""
        self._module[0].train(mode)
        return super().train(mode)

    def __getstate__(self) -> dict:
        self.bind()
        return dict(self.__dict__)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._link(dict(self._module[0].named_parameters()))


class _ModuleTrace(AutogradTrace):
    """An `AutogradTrace` without the question, at every step, whether parameters were replaced."""

    policy: ModulePolicy

    def controls(self, states: torch.Tensor) -> torch.Tensor:
        policy = self.policy
        hooked = policy._forward_hooks or policy._forward_pre_hooks
        return policy(states) if hooked else policy.controls(states)


def _as_tensor(control: object) -> torch.Tensor:
    if not isinstance(control, torch.Tensor):
        raise PolicyError(f"Expected policy output as a tensor, got {type(control).__name__}.")
    return control


def _tied(module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Names of parameters that are another part's as well, each with the name under which it is trained."""
    own = {id(parameter): name for name, parameter in parameters.items()}
    names: dict[str, str] = {}
    for front, part in module.named_modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                names[f"{front}.{name}" if front else name] = own[id(parameter)]
    return {name: trained for name, trained in names.items() if name != trained}


def _check_module(module: nn.Module) -> None:
    """PolicyError for a module that trains nothing, has memory, mixes rows or draws."""
    if not any(True for _ in module.parameters()):
        raise PolicyError(f"Expected a module with parameters to train, got {type(module).__name__} without any.")
    for name, part in module.named_modules():
        if isinstance(part, _WITH_MEMORY):
            raise PolicyError(f"Expected a policy without memory, got {type(part).__name__} at {name or 'the top'!r}.")
        if isinstance(part, _MIX_ROWS_OR_DRAW) and part.training:
            raise PolicyError(
                f"Expected rows to be independent and deterministic, got {type(part).__name__} at {name!r} in "
                "training mode; call .eval() on it or replace it."
            )


def _place(tensor: torch.Tensor) -> tuple:
    """Where and how a tensor lies in memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _kind(parameters: dict[str, nn.Parameter]) -> tuple[torch.dtype, torch.device]:
    """The one real dtype and device of all parameters."""
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise PolicyError(f"Expected parameters with a shape, got {name} without one; call the lazy module once.")
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters.values()}
    if len(kinds) > 1:
        raise PolicyError(f"Expected parameters of one dtype on one device, got {sorted(map(str, kinds))}.")
    dtype, device = kinds.pop()
    if not dtype.is_floating_point or device.type == "meta":
        raise PolicyError(f"Expected real parameters in memory, got {dtype} on {device}; convert them with .to().")
    return dtype, device


def _check_apart(parameters: dict[str, nn.Parameter]) -> None:
    """PolicyError if two parameters lie in the same memory without being one."""
    places: dict[int, str] = {}
    for name, parameter in parameters.items():
        other = places.setdefault(parameter.data_ptr(), name) if parameter.numel() else name
        if other != name:
            raise PolicyError(
                f"Expected parameters in memory of their own, got {other} and {name} in the same; to tie weights, "
                "assign one nn.Parameter in both places."
            )
