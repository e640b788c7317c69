"""One pack in a process of its own: `python -m benchmarks.studies.worker`, started by `Processes`.

It reads a pickled order, after its length in eight bytes, from the process that started it, and prints the answer as
JSON. A byte more asks it to stop; where that process is gone it ends at once, with a checkpoint of the last epoch.
"""

import json
import os
import pickle
import signal
import threading

from benchmarks.studies.orders import fulfil
from training.stopping import Stopping

_INPUT = 0


def main() -> None:
    """Train the pack of the order and print what is written of it."""
    order = pickle.loads(_read(int.from_bytes(_read(8), "big")))
    with Stopping() as stopping:
        threading.Thread(target=_listen, args=(stopping,), daemon=True).start()
        answer = fulfil(order, stopping)
    print(json.dumps(answer))


def _read(count: int) -> bytes:
    """So many bytes, past Python's buffers: a thread that waits in those cannot be left at the end."""
    read = b""
    while len(read) < count:
        more = os.read(_INPUT, count - len(read))
        if not more:
            raise SystemExit(1)
        read += more
    return read


def _listen(stopping: Stopping) -> None:
    """Note that a stop is asked for, until nobody is there to ask."""
    while os.read(_INPUT, 1):
        if stopping.requested is None:
            stopping.requested = int(signal.SIGTERM)
    os._exit(1)


if __name__ == "__main__":
    main()
