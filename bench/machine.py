"""What the numbers were measured on, without naming the machine; and what a process has used of it."""

import os
import platform
import re
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


def peak_memory_mb(pid: int) -> float:
    """The most memory that a process has had resident. Source: proc(5), VmHWM of /proc/pid/status."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/{pid}/status has no VmHWM")
    return int(found[1]) * 1.024 / 1000
