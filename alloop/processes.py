"""Start times of processes, which distinguish a process from a later one with the same id; the life of workers."""

import multiprocessing
import os
import signal
import subprocess
import threading
from pathlib import Path


def start_time(pid: int) -> str:
    """Return the start time of a process in the system's own format; empty for no process or a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            # The name in parentheses may hold blanks, so fields count from behind it: 0 is the state, 19 the start.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in {"Z", "X"} else fields[19]
    found = subprocess.run(["ps", "-o", "lstart=,stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    words = found.stdout.split()
    return "" if not words or words[-1].startswith("Z") else "-".join(words[:-1])


def begin_worker() -> None:
    """Prepare this process, which another one started for its work: it ignores Ctrl-C and ends with the other one."""
    # Ctrl-C reaches every process of the terminal; only the first one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, however that happened: nobody wants its results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
