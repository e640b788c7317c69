"""Seconds of `import evenflow` in a new process, printed as JSON: `python -m benchmarks.beside.importing`."""

import time

_began = time.perf_counter()
import evenflow  # noqa: E402, F401

print(time.perf_counter() - _began)
