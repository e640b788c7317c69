"""Any torch module without memory as a policy of one member."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call

from policies.policy import Policy, PolicyError

_WITH_MEMORY = (nn.RNNBase, nn.RNNCellBase)
_MIX_ROWS_OR_DRAW = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class ModulePolicy(Policy):
    """u = module(x) for a memoryless torch module that maps [b, *state_shape] to [b, *control_shape].

    The module's parameters become views of `theta`, so that the module itself is trained.

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
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters.values()}
        if len(kinds) > 1:
            raise PolicyError(f"Expected parameters of one dtype on one device, got {sorted(map(str, kinds))}.")
        dtype, device = kinds.pop()
        count = sum(parameter.numel() for parameter in parameters.values())
        super().__init__(state_shape, control_shape, count, 1, dtype, device)
        # Kept out of the registered submodules: theta is the one parameter that optimisers see.
        self._module = (module,)
        self._slices: dict[str, tuple[int, int, torch.Size]] = {}
        offset = 0
        for name, parameter in parameters.items():
            self._slices[name] = (offset, offset + parameter.numel(), parameter.shape)
            view = self._views(self.theta.data)[name]
            view.copy_(parameter.data)
            parameter.data = view
            offset += parameter.numel()

    def _views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: flat[0, start:stop].view(shape) for name, (start, stop, shape) in self._slices.items()}

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        (module,) = self._module
        if not torch.is_grad_enabled():
            return module(state[0]).unsqueeze(0)
        return functional_call(module, self._views(self.theta), (state[0],)).unsqueeze(0)

    def initialise(self, member: int, generator: torch.Generator) -> None:
        """The module comes with its parameters; nothing is drawn."""
