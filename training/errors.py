"""One family of errors for users: policies, which know nothing of the engine, raise theirs, and here they join."""

from engine import EvenflowError
from policies import PolicyError

if not issubclass(PolicyError, EvenflowError):
    # `except` asks for real bases, and neither package may import the other.
    PolicyError.__bases__ = (EvenflowError, ValueError)
