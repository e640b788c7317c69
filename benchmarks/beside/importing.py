"""Seconds of `import evenflow` in a new process: `python -m benchmarks.beside.importing` prints them as JSON."""

import importlib
import time

_began = time.perf_counter()
importlib.import_module("evenflow")
print(time.perf_counter() - _began)
