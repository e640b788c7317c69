"""Any torch module without memory as a policy of one member."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from policies.policy import AutogradRecord, Policy, PolicyError, PolicyRecord, make_usable, switches_of

_WITH_MEMORY = (nn.RNNBase, nn.RNNCellBase)
_MIX_ROWS_OR_DRAW = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class ModulePolicy(Policy):
    """u = module(x) for a memoryless torch module that maps [b, *state_shape] to [b, *control_shape].

    The module's parameters become views of `theta`, so that the module itself is trained. Whichever of the two is
    replaced later, by assignment, loading or casting, is what both hold from the next call on. Parameters with
    `requires_grad=False` are left as they are.

    Args:
        module: each row of its output may depend on its own row alone.
        state_shape, control_shape: shapes of one sample's state and control.
    """

    def __init__(self, module: nn.Module, state_shape: Sequence[int], control_shape: Sequence[int]):
        parameters = dict(module.named_parameters())
        if not parameters:
            raise PolicyError(f"Expected a module with parameters to train, got {type(module).__name__} without any.")
        for name, part in module.named_modules():
            if isinstance(part, _WITH_MEMORY):
                raise PolicyError(
                    f"Expected a policy without memory, got {type(part).__name__} at {name or 'the top'!r}."
                )
            if isinstance(part, _MIX_ROWS_OR_DRAW) and part.training:
                raise PolicyError(
                    f"Expected rows to be independent and deterministic, got {type(part).__name__} at {name!r} in "
                    "training mode; call .eval() on it or replace it."
                )
        dtype, device = _kind(parameters)
        _check_apart(parameters)
        count = sum(parameter.numel() for parameter in parameters.values())
        super().__init__(state_shape, control_shape, count, 1, dtype, device)
        # Kept out of the registered submodules: theta is the one parameter that optimisers see.
        self._module = (module,)
        self._slices: dict[str, tuple[int, int, torch.Size]] = {}
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

    @property
    def architecture(self) -> dict[str, Any]:
        return {**super().architecture, "module": type(self._module[0]).__name__}

    def _views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: flat[0, start:stop].view(shape) for name, (start, stop, shape) in self._slices.items()}

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        self.bind()
        return self.controls(state)

    def controls(self, state: torch.Tensor) -> torch.Tensor:
        """`forward` while nothing has been replaced since `bind`."""
        (module,) = self._module
        if not torch.is_grad_enabled():
            control = module(state[0])
        else:
            control = functional_call(module, self._views(self.theta), (state[0],))
        if not isinstance(control, torch.Tensor):
            raise PolicyError(f"Expected policy output as a tensor, got {type(control).__name__}.")
        return control.unsqueeze(0)

    def initialise(self, member: int, generator: torch.Generator) -> None:
        """The module comes with its parameters; nothing is drawn."""

    def record(
        self, slots: int, batch: int, state_shape: tuple[int, ...], control_shape: tuple[int, ...]
    ) -> PolicyRecord:
        self.check_fit(state_shape, control_shape)
        own = type(self).forward is ModulePolicy.forward
        return _ModuleRecord(self, batch) if own else AutogradRecord(self, batch)

    def bind(self) -> None:
        """Let `theta` and the module's parameters be one again; the side that was replaced is the one that counts.

        Raises:
            PolicyError: if both were, or if the module's parameters have other names, shapes or kinds.
        """
        super().bind()
        found = dict(self._module[0].named_parameters())
        places, place = {name: _place(parameter) for name, parameter in found.items()}, _place(self.theta)
        if places == self._places and place == self._place:
            return
        if any(parameter.is_inference() for parameter in found.values()):
            make_usable(self._module[0])
            found = dict(self._module[0].named_parameters())
            places = {name: _place(parameter) for name, parameter in found.items()}
        count = max(stop for _, stop, _ in self._slices.values())
        if self.theta.shape != (1, count):
            raise PolicyError(f"Expected policy.theta of shape {[1, count]}, got {list(self.theta.shape)}.")
        shapes = {name: parameter.shape for name, parameter in found.items()}
        if shapes != {name: shape for name, (_, _, shape) in self._slices.items()}:
            named = sorted(
                {name for name, _ in shapes.items() ^ {n: s for n, (_, _, s) in self._slices.items()}.items()}
            )
            raise PolicyError(
                f"Expected the module's parameters as they were when the policy was built, got others at "
                f"{', '.join(named)}; build another ModulePolicy."
            )
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
        with torch.inference_mode(False):
            views = self._views(self.theta.data)
            for name, parameter in parameters.items():
                parameter.data = views[name]
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


class _ModuleRecord(AutogradRecord):
    """An `AutogradRecord` without the question, at every step, whether parameters were replaced."""

    policy: ModulePolicy

    def controls(self, states: torch.Tensor) -> torch.Tensor:
        policy = self.policy
        hooked = policy._forward_hooks or policy._forward_pre_hooks
        return policy(states) if hooked else policy.controls(states)


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
