"""What a worker process does first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def initialize_worker() -> None:
    """Makes a worker process ignore Ctrl-C, which a terminal sends to its parent as well, and end with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
