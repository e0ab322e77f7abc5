"""The best that a machine could do, and what share of it each part reaches."""

import numpy as np

from benchmarks import in_turns
from dl_slicer.patch_sets.on_disk import IMAGE_SIZE

PATCHES = 64  # copied at a time


def reached(result: dict[str, dict]) -> dict[str, object]:
    """Measure how fast memory is copied, and give the keys of the JSON file's part "limits".

    result: of the parts that have been measured.
    """
    source = np.ones(PATCHES * IMAGE_SIZE * IMAGE_SIZE * 3, np.uint8)
    target = np.empty_like(source)
    repeats = 20

    def copy():
        for _ in range(repeats):
            np.copyto(target, source)

    seconds = in_turns(5, copy=copy)["copy"] / repeats
    found = {"memory_copy_GB_a_second": source.nbytes / seconds / 1e9, "close": {}}
    if "preprocessing" in result:
        decoding = result["preprocessing"]["decoding_kept"]
        found["decoding_s_a_raster"] = decoding
        found["close"]["preprocessing"] = decoding / result["preprocessing"]["ours"]
    if "input" in result:
        found["copied_patches_a_second"] = PATCHES / seconds
        found["close"]["input_raw"] = result["input"]["raw"] * seconds / PATCHES
    if "training" in result:
        in_memory = result["training"]["in_memory"]
        found["step_on_data_in_memory_s"] = in_memory
        found["close"]["training"] = in_memory / result["training"]["ours"]
    return found
