"""Where the rows of a raster's blended maps go, so that no map is in memory as a whole.

Each takes {layer: float32 (n, W)}, rows that follow those before.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dl_slicer.files import atomic
from relevance_cam.rasters import Grid

Rows = Mapping[str, np.ndarray]


class ReducedMaps:
    """Smaller maps, for pictures: means over blocks of block x block pixels of the network."""

    def __init__(self, layers: Sequence[str], block: int, width: int):
        self._means = {layer: BlockMeans(block, width, keeps_rest=True) for layer in layers}
        self._parts: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}

    def add(self, rows: Rows) -> None:
        """Take further rows."""
        for layer, values in rows.items():
            self._parts[layer].append(self._means[layer].add(values))

    def maps(self) -> dict[str, np.ndarray]:
        """Give the maps (h, w) when all rows have come."""
        return {
            layer: np.concatenate([*parts, self._means[layer].finish()])
            for layer, parts in self._parts.items()
        }


class MapCells:
    """Bands of a GeoTIFF, one a layer: means over cells of cell x cell pixels of the network."""

    def __init__(self, dataset, layers: Sequence[str], cell: int, width: int):
        self._dataset = dataset
        self._means = {layer: BlockMeans(cell, width, keeps_rest=False) for layer in layers}
        self._top = 0

    def add(self, rows: Rows) -> None:
        """Take further rows."""
        from dl_slicer.results import geotiffs

        cells = [self._means[layer].add(rows[layer]) for layer in self._means]
        geotiffs.write_rows(self._dataset, self._top, cells)
        self._top += len(cells[0])


class MapFiles:
    """Maps as large as the network sees the raster, (H, W), on the disk."""

    def __init__(self, maps: dict[str, np.ndarray]):
        self._maps = maps
        self._top = 0

    def add(self, rows: Rows) -> None:
        """Take further rows."""
        for layer, values in rows.items():
            self._maps[layer][self._top : self._top + len(values)] = values
        self._top += len(next(iter(rows.values())))

    def save(self, path: Path, facts: Mapping[str, object]) -> None:
        """Write all maps and some facts as .npz."""
        with atomic(path) as file:
            np.savez_compressed(file, **facts, **self._maps)


@contextmanager
def map_files(folder: Path, layers: Sequence[str], grid: Grid) -> Iterator[MapFiles]:
    """Give maps that lie in a folder until the block ends."""
    paths = {layer: folder / f".{layer}.npy" for layer in layers}
    try:
        maps = {
            layer: np.lib.format.open_memmap(path, "w+", np.float32, (grid.height, grid.width))
            for layer, path in paths.items()
        }
        yield MapFiles(maps)
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)


class BlockMeans:
    """Means over blocks of a map (H, W), whose rows come one after the other."""

    def __init__(self, block: int, width: int, keeps_rest: bool):
        """block: pixels of a side; keeps_rest: blocks cut off at the rims are means, too."""
        self._block = block
        self._columns = np.arange(0, width if keeps_rest else width - block + 1, block)
        self._used = width if keeps_rest else len(self._columns) * block
        self._keeps_rest = keeps_rest
        self._waiting = np.empty((0, width), np.float32)

    def add(self, rows: np.ndarray) -> np.ndarray:
        """Give the rows of blocks (m, w) that some further rows (n, W) complete."""
        rows = np.concatenate([self._waiting, rows])
        whole = len(rows) // self._block * self._block
        self._waiting = rows[whole:].copy()
        return self._means(rows[:whole])

    def finish(self) -> np.ndarray:
        """Give the last row of blocks (1, w) or none (0, w)."""
        rest = self._waiting if self._keeps_rest else self._waiting[:0]
        return self._means(rest)

    def _means(self, rows: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.empty((0, len(self._columns)), np.float32)
        starts = np.arange(0, len(rows), self._block)
        sums = np.add.reduceat(rows[:, : self._used], starts, axis=0, dtype=np.float64)
        sums = np.add.reduceat(sums, self._columns, axis=1)
        heights = np.diff([*starts, len(rows)])
        widths = np.diff([*self._columns, self._used])
        return (sums / (heights[:, None] * widths)).astype(np.float32)
