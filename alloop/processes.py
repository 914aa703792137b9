"""Start times of processes, which distinguish a process from a later one with the same id."""

import subprocess
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
