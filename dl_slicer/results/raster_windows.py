"""Whole rasters cut into windows as large as the patches that a network was trained on."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from dl_slicer.model.checkpoints import Checkpoint
from dl_slicer.patch_sets import image_files, on_disk


@dataclass(frozen=True)
class Windows:
    """The windows that a checkpoint's network looks at."""

    patch_size: int  # pixels of the raster
    size: int  # the same length in the network's pixels
    step: int  # between windows, in the network's pixels

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "Windows":
        """Give those of a checkpoint: the published ones where the file does not say."""
        patch_size = checkpoint.patch_size or on_disk.PATCH_SIZE
        stride = checkpoint.stride or on_disk.STRIDE
        size = checkpoint.image_size
        return cls(patch_size, size, max(1, round(stride * size / patch_size)))

    def resize(self, raster: Image.Image) -> np.ndarray:
        """Pixels uint8 (H, W, 3) of an RGB raster at the network's scale, a window at least.

        Resized as a whole and then cut, as preprocessing.py does.
        """
        size = tuple(max(self.size, round(n * self.size / self.patch_size)) for n in raster.size)
        return np.asarray(image_files.resize(raster, size))
