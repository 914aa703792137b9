"""The number of worker processes follows what this process may use, not what the machine has."""

import multiprocessing
import os
import resource
from pathlib import Path

import pytest

from alloop import machine
from alloop.machine import count_workers, usable_cores, usable_memory

GIB = 2**30


def machine_with(folder: Path, groups: str, files: dict[str, str], meminfo: str = "") -> tuple[Path, Path]:
    """Write a false /proc and /sys/fs/cgroup."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(groups)
    (proc / "meminfo").write_text(meminfo)
    cgroups.mkdir()
    for name, text in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(text)
    return proc, cgroups


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, 16, id="no-quota"),
        pytest.param("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n"}, 4, id="own-group"),
        pytest.param(
            "0::/a/b\n", {"a/cpu.max": "250000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3, id="parent-rounded-up"
        ),
        pytest.param("0::/a\n", {"a/cpu.max": "1000 100000\n"}, 1, id="at-least-one"),
        pytest.param("0::/host/only\n", {"cpu.max": "200000 100000\n"}, 2, id="path-of-the-host"),
        pytest.param(
            "4:cpu,cpuacct:/a\n0::/\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "150000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "50000\n"},
            3,
            id="version-1",
        ),
        pytest.param(
            "4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16, id="version-1-none"
        ),
        pytest.param("0::/a\n", {"a/cpu.max": "6400000 100000\n"}, 16, id="more-than-the-affinity"),
        pytest.param("", {}, 16, id="no-groups"),
    ],
)
def test_cores_are_the_least_of_affinity_and_quotas(groups: str, files: dict[str, str], cores: int, tmp_path: Path):
    assert usable_cores(*machine_with(tmp_path, groups, files)) == cores


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 8 * GIB),
        ("0::/a/b\n", {"a/memory.max": f"{2 * GIB}\n", "a/b/memory.max": "max\n"}, 2 * GIB),
        ("7:memory:/a\n", {"memory/a/memory.limit_in_bytes": f"{3 * GIB}\n"}, 3 * GIB),
        ("0::/\n", {"memory.max": f"{64 * GIB}\n"}, 8 * GIB),
        # 3 of 5 GiB are used, but 1 of these are files that the system may drop.
        (
            "0::/\n",
            {
                "memory.max": f"{5 * GIB}",
                "memory.current": f"{3 * GIB}",
                "memory.stat": f"anon 9\ninactive_file {GIB}\n",
            },
            3 * GIB,
        ),
        (
            "7:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": f"{3 * GIB}\n",
                "memory/a/memory.usage_in_bytes": f"{GIB}\n",
                "memory/a/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB // 2}\n",
            },
            5 * GIB // 2,
        ),
        ("0::/\n", {"memory.max": f"{GIB}\n", "memory.current": f"{2 * GIB}\n"}, 0),
    ],
)
def test_memory_is_what_is_free_or_a_smaller_limit(groups: str, files: dict[str, str], expected: int, tmp_path: Path):
    assert usable_memory(*machine_with(tmp_path, groups, files, "MemAvailable:  8388608 kB\n")) == expected


def test_memory_of_this_machine_and_of_a_system_that_does_not_say(tmp_path: Path):
    assert 2**20 < usable_memory() < 2**50
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    assert usable_memory(tmp_path, tmp_path) == half


def test_a_number_is_taken_as_it_is():
    assert [count_workers(n) for n in (0, 1, 99)] == [0, 1, 99]


def test_auto_is_bounded_by_memory_open_files_and_shared_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    monkeypatch.setattr(machine, "usable_memory", lambda: 64 * GIB)
    monkeypatch.setattr(machine, "_free_bytes", lambda _: 64 * 2**20)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4096, 4096))
    assert count_workers("auto") == 16
    assert count_workers("auto", shared_each=10 * 2**20) == 6
    assert count_workers("auto", shared_each=100 * 2**20) == 0

    monkeypatch.setattr(machine, "usable_memory", lambda: 2 * GIB)
    assert count_workers("auto") == 4
    monkeypatch.setattr(resource, "getrlimit", lambda _: (72, 4096))
    assert count_workers("auto") == 2


def test_a_process_at_work_beside_others_starts_one_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())

    assert count_workers("auto") == 1
