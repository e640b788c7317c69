"""Watching trained controllers and the adjoints that train them, in a window or in a recording."""

from training.viewing.controller import Watched, member_of, untrained, watched
from training.viewing.film import record
from training.viewing.show import Show
from training.viewing.view import ViewSettings, view

__all__ = [
    "Show",
    "ViewSettings",
    "Watched",
    "member_of",
    "record",
    "untrained",
    "view",
    "watched",
]
