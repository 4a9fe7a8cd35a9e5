"""How much memory is free on the host and on the device."""

import os
from pathlib import Path

import torch

__all__ = ["free_device_bytes", "free_host_bytes"]

_CGROUP = Path("/sys/fs/cgroup")


def free_host_bytes() -> int:
    """Return what the system can give without swapping, within the limit of the job's control group.

    Where torchrun started several processes on this machine it is this one's share, for all of them ask at once.
    """
    return min(_system_bytes(), _cgroup_bytes()) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _system_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux; page counts exist on every POSIX system
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _cgroup_bytes() -> int:
    """A batch system limits jobs through control groups, which /proc/meminfo does not know."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        return max(0, limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return 1 << 62


def free_device_bytes(device: torch.device) -> int:
    """Return the free memory of a CUDA device, of the host for any other."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes()
