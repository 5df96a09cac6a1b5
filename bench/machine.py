"""What the numbers were measured on, without naming the machine; and what a process has used of it."""

import os
import platform
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Machine:
    """Its shape."""

    cores: int
    memory_gb: float
    processor: str
    system: str


def this_machine() -> Machine:
    """The shape of the machine that this runs on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(len(os.sched_getaffinity(0)), memory / 1e9, _processor(), f"{platform.system()} {_kernel()}")


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def _kernel() -> str:
    """Major and minor version: what comes after them often names the machine's owner."""
    return ".".join(platform.release().split(".")[:2])


def cpu_s(pid: int) -> float:
    """CPU time that a process has used so far, user and system, all its threads. Source: proc(5), /proc/pid/stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@dataclass(frozen=True, slots=True)
class Used:
    """CPU time so far, in s: of each process and all that it has started, and of the whole machine."""

    by_name: Mapping[str, float]
    busy: float
    """What all processes and the kernel have used."""
    idle: float
    """What all cores together had nothing to do, or waited for a disk."""


def used(processes: Mapping[str, int]) -> Used:
    """CPU time so far of each process, by its name, and of the machine.

    Raises KeyError when one of them is not there. Source: proc(5), /proc/pid/stat and /proc/stat.
    """
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            stats[int(path.parent.name)] = path.read_text()
    user, nice, system, idle, waiting, irq, soft_irq = map(int, Path("/proc/stat").read_text().split()[1:8])
    trees = trees_cpu_s(stats, processes.values())
    by_name = {name: trees[pid] for name, pid in processes.items()}
    busy = user + nice + system + irq + soft_irq
    return Used(by_name, busy / TICKS_PER_S, (idle + waiting) / TICKS_PER_S)


def trees_cpu_s(stats: Mapping[int, str], roots: Iterable[int]) -> dict[int, float]:
    """CPU time of each root and all that it has started, those that have ended among them. Pure.

    `stats` are the contents of /proc/pid/stat. A parent's fields hold the time of the children that it has waited for.
    Raises KeyError for a root that is not among them.
    """
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for pid, stat in stats.items():
        fields = stat.rpartition(")")[2].split()
        children.setdefault(int(fields[1]), []).append(pid)
        ticks[pid] = sum(map(int, fields[11:15]))

    def tree(pid: int) -> int:
        return ticks[pid] + sum(map(tree, children.get(pid, ())))

    return {root: tree(root) / TICKS_PER_S for root in roots}


def peak_memory_mb(pid: int) -> float:
    """The most memory that a process has had resident. Source: proc(5), VmHWM of /proc/pid/status."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/{pid}/status has no VmHWM")
    return int(found[1]) * 1.024 / 1000
