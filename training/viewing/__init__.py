"""Watching trained controllers and the adjoints that train them, in a window or in a recording."""

from training.viewing.film import write_film
from training.viewing.show import Show
from training.viewing.view import ViewSettings, view
from training.viewing.watching import Watched, member_of, untrained, watched

__all__ = [
    "Show",
    "ViewSettings",
    "Watched",
    "member_of",
    "untrained",
    "view",
    "watched",
    "write_film",
]
