"""What a process does first that was started to help another one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def attach() -> None:
    """Leaves Ctrl-C, which goes to every process of a terminal, to the one that started this, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
