"""Share of the machine that this process may use, and number of processes that it may start for its work."""

import math
import multiprocessing
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

PROC, CGROUPS, SHARED = Path("/proc"), Path("/sys/fs/cgroup"), Path("/dev/shm")  # noqa: S108 - only looked at
_MEMORY_EACH = 2**29  # bytes of a process that decodes images: the libraries, and a large photo
_FILES_EACH, _FILES_KEPT = 4, 64  # open files for each process, and for all other work

Workers = int | Literal["auto"]


def count_workers(setting: Workers, shared_each: int = 0) -> int:
    """Return the number of processes for a setting `workers`. A number is taken as it is.

    `auto` is the number of cores that this process may use, or fewer if memory, shared memory or the number of open
    files is short. It is 1 in a process that is itself one of several at work, since the others use the other cores.

    Args:
        setting: The setting.
        shared_each: Bytes of shared memory in which each process hands over its results.
    """
    if setting != "auto":
        return setting
    cores = usable_cores() if multiprocessing.parent_process() is None else 1
    limits = [cores, max(1, usable_memory() // _MEMORY_EACH), max(1, _open_files() // _FILES_EACH)]
    if shared_each:
        limits.append(_free_bytes(SHARED) // shared_each)  # with none, this process itself does the work
    return min(limits)


def usable_cores(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the number of cores that this process may use, at least 1.

    This is the least of the cores of its affinity and of the CPU quotas of its control groups and of those that contain
    them, rounded up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_quota(folder) for folder in _groups(proc, cgroups, "cpu")]
    return max(1, min([cores, *(math.ceil(quota) for quota in quotas if quota is not None)]))


def usable_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the bytes of memory that this process may still take: of the machine, and of its control groups.

    Files that the system keeps in memory count as free. Where the system does not say, it is half of the memory.
    """
    free = [int(line.split()[1]) * 1024 for line in _lines(proc / "meminfo") if line.startswith("MemAvailable:")]
    left = [_left_of(folder) for folder in _groups(proc, cgroups, "memory")]
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([*(free or [physical]), *(bytes_ for bytes_ in left if bytes_ is not None)])


def _left_of(group: Path) -> int | None:
    """Return the bytes that a control group of version 2 or 1 may still take; None without a limit."""
    for limit, used, files in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        if (most := _number(group / limit)) is not None:
            kept = [int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith(f"{files} ")]
            return max(0, int(most - max(0, (_number(group / used) or 0) - sum(kept))))
    return None


def _groups(proc: Path, cgroups: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups of versions 1 and 2, and of those that contain them."""
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        tops = [cgroups / controllers, cgroups / controller] if controllers else [cgroups, cgroups / "unified"]
        if controllers and controller not in controllers.split(","):
            continue
        for top in tops:
            folder = top / path.lstrip("/")
            # In a container the path may be that of the host, and only the top exists.
            yield from (place for place in (folder, *folder.parents) if place.is_relative_to(top) and place.is_dir())


def _quota(group: Path) -> float | None:
    """Return the CPU quota of a control group in cores; None without one."""
    words = " ".join(_lines(group / "cpu.max")).split()
    if len(words) == 2 and words[0] != "max":
        return int(words[0]) / int(words[1])
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return quota / period if quota is not None and period and quota > 0 else None


def _number(path: Path) -> float | None:
    text = "".join(_lines(path))
    return float(text) if text.removeprefix("-").isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**20 if soft == resource.RLIM_INFINITY else soft - _FILES_KEPT


def _free_bytes(folder: Path) -> int:
    try:
        status = os.statvfs(folder)
    except OSError:
        return 2**62
    return status.f_bavail * status.f_frsize
