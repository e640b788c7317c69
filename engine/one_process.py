"""What holds launches and buffers of the runtime, and so belongs to the process that made it."""

from typing import NoReturn, SupportsIndex

from engine.errors import SettingError


class OneProcess:
    """Base of what can be neither copied nor pickled; SettingError where it is tried."""

    _instead = "make another from what it was made of"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise SettingError(
            f"Expected a {type(self).__name__} to stay as the one that it is, since its launches and buffers belong to "
            f"this process, got a copy or a pickle of it; {self._instead}."
        )
