"""The error of this package; its messages are one sentence: what was expected, what came, what to do."""


class PolicyError(ValueError):
    """A policy that does not fit what it is asked to control."""
