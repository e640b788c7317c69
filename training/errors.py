"""Errors of runs, and one family of errors for users: that of policies, which know nothing of the engine, joins it."""

from engine import EvenflowError
from policies import PolicyError


class RunError(EvenflowError):
    """A run directory or checkpoint that cannot be written, read or continued."""


if not issubclass(PolicyError, EvenflowError):
    # `except` asks for real bases, and neither package may import the other.
    PolicyError.__bases__ = (EvenflowError, ValueError)
