"""A Python that has gemfleet's dependencies, but not the editable installation of gemfleet."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path


def python_with_dependencies(folder: Path, wheel: Path | None = None) -> Path:
    """The interpreter of a new environment, which has the wheel, if one is given, and reads the running one's packages.

    Python runs the `.pth` files of an environment's own folder only. So the editable installation, which is a `.pth`
    file in the running environment, has no effect in the new one.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    if wheel is not None:  # first, so that pip does not see the editable installation
        options = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", str(wheel)]
        subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *options], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([str(python), "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    folders = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (Path(own) / "dependencies.pth").write_text("".join(f"{entry}\n" for entry in folders))
    return python
