"""The versions of everything that can change a result."""

import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import PIL


@lru_cache
def installed() -> dict[str, str | None]:
    """Give the version of each library by name, and the commit of this checkout.

    None where there is none: no GPU, or no git.
    """
    # Here, since preprocessing.py records versions, too, and does without torch.
    import torch
    import torchvision

    return {
        **without_torch(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "commit": _commit(),
    }


def without_torch() -> dict[str, str]:
    """Give the versions that can change a patch set."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "rasterio": metadata.version("rasterio"),  # not imported: that takes a third of a second
    }


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git on this machine
        return None
    return git.stdout.strip() or None
