"""The errors a user can cause. Each message is one sentence: what was expected, what came, what to do."""


class EvenflowError(Exception):
    """Base of every error that a user's input can cause."""


class EvenflowWarning(UserWarning):
    """What a user should know of a computation that goes on."""


class BackendError(EvenflowError):
    """A backend, precision or device that is not there or does not fit."""


class ShapeError(EvenflowError):
    """A tensor of the wrong shape, dtype, device or layout."""


class SettingError(EvenflowError):
    """A setting outside its range, or a name that does not exist."""


class AdjointError(EvenflowError):
    """An adjoint that cannot be had where it was asked for."""


class KernelError(EvenflowError):
    """A user's kernel that cannot be compiled, or that is not a step that depends on its arguments alone."""


class BudgetError(EvenflowError):
    """A memory budget too small for what was asked of it."""


class LibraryError(EvenflowError, ImportError):
    """A library of the machine that Taichi needs and does not find."""


def no_room(what: str) -> str:
    """What is said where a device has no memory left for `what`."""
    return f"Expected room on the device for {what}, got none left; lower the batch, or give a memory budget."
