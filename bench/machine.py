"""The facts about a machine that timings depend on, and nothing that names it."""

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Describe the processor, the system, and how busy they are with other things."""
    system = f"{platform.system()} {platform.machine()}"
    with suppress(OSError, KeyError):
        system += f", {platform.freedesktop_os_release()['PRETTY_NAME']}"
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": _caches(),
        "os": system,
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = found.get("model name") or platform.processor() or platform.machine()
    return f"{name} (family {found['cpu family']}, model {found['model']})" if "cpu family" in found else name


def _caches() -> dict[str, str]:
    """Sizes of the data caches that the first core sees, where Linux tells them."""
    sizes = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (cache / "type").read_text().strip() != "Instruction":
            sizes[f"L{(cache / 'level').read_text().strip()}"] = (cache / "size").read_text().strip()
    return sizes


def nvidia_driver() -> dict[str, str]:
    """Version of the driver, where Linux tells it."""
    with suppress(OSError):
        words = Path("/proc/driver/nvidia/version").read_text().split()
        return {"kernel_driver": next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), "")}
    return {}
