"""What a pretended GPU is to be, and the environment of a process that is to see it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from support.nullgpu.build import DRIVER, built


@dataclass(frozen=True)
class PretendedGpu:
    """name: of all, or one for each with `;` between them; count: how many of them the machine has

    unusable: NVML lists them, but CUDA finds its driver too old
    """

    name: str = "NVIDIA H200"
    capability: str = "9.0"
    gib: float = 139.8
    count: int = 1
    unusable: bool = False

    def variables(self, log: Path | None = None, alone: bool = False) -> dict[str, str]:
        """For the environment of a process. log: file for its events; alone: no other rank is there to be met."""
        folder = built()
        paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "NULLGPU_NAME": self.name,
            "NULLGPU_CC": self.capability,
            "NULLGPU_GIB": str(self.gib),
            "NULLGPU_DEVICES": str(self.count),
            "NULLGPU_UNUSABLE": str(int(self.unusable)),
            "NULLGPU_ALONE": str(int(alone)),
            "NULLGPU_LOG": str(log or ""),
            "LD_PRELOAD": str(folder / DRIVER),
            "LD_LIBRARY_PATH": ":".join(path for path in paths if path),
            "PATH": f"{folder / 'bin'}:{os.environ.get('PATH', '')}",
            "TRITON_LIBCUDA_PATH": str(folder),
            "TRITON_CACHE_DIR": str(folder / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }
