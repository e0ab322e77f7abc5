"""Versions of everything that can change a result."""

import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision


@lru_cache
def installed():
    """Of everything that can change a result, and the commit of this checkout."""
    found = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
        found["commit"] = git.stdout.strip() or None
    except OSError:  # no git on this machine
        found["commit"] = None
    return found
