"""What a test found of each raster, small enough to be kept: raster_sums.npz.

Patches of one raster go together, so whatever draws rasters anew (resemblance_stability.py) needs
no more of them than their sums. Of 56,000 patches with 2048 features each, 460 MB, 329 rasters are
left: 3 MB.
"""

import json
import tokenize
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dl_slicer.cli import InputError, printable
from dl_slicer.files import atomic
from dl_slicer.results import intervals

if TYPE_CHECKING:  # that module imports this one
    from dl_slicer.results.tables import Predictions

FILE = "raster_sums.npz"
# Rasters of a city that are kept apart. Where it is not known which patches are of one raster, each
# counts as one, and all their features would be kept.
MOST_OF_A_CITY = 50
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    MemoryError,
    RuntimeError,  # of zipfile, for kinds of archives that it does not know
    zipfile.BadZipFile,
    tokenize.TokenError,  # of numpy, for a header that is no Python
)


@dataclass(frozen=True)
class RasterSums:
    """Sums over the patches of each of M rasters, in a test of K cities.

    Rasters of two cities are two, even if they have one name.
    """

    classes: list[str]  # names of the K cities, in class order
    rasters: list[str]  # names of the M rasters
    city: np.ndarray  # (M,) int, class numbers
    patches: np.ndarray  # (M,) int, how many there are: at least 1
    confusion: np.ndarray  # (M, K) int: how many of them were taken for each city
    probabilities: np.ndarray  # (M, K) float64: sums of the stated probabilities
    features: np.ndarray  # (M, D) float32: sums of the features of the penultimate layer

    def rasters_of_cities(self) -> np.ndarray:
        """Count the rasters of each city: (K,) int."""
        return np.bincount(self.city, minlength=len(self.classes))

    def of_cities(self, values: np.ndarray) -> np.ndarray:
        """Sum values (M, ...) over the rasters of each city: (K, ...) float64 or int."""
        wide = np.float64 if values.dtype.kind == "f" else np.int64
        sums = np.zeros((len(self.classes), *values.shape[1:]), wide)
        np.add.at(sums, self.city, values)
        return sums

    def save(self, path: str | Path) -> None:
        """Write raster_sums.npz: stored arrays, and the names as JSON; no pickles."""
        names = json.dumps({"classes": self.classes, "rasters": self.rasters})
        with atomic(path) as file:
            np.savez(
                file,
                names=np.frombuffer(names.encode("ascii"), np.uint8),
                city=self.city,
                patches=self.patches,
                confusion=self.confusion,
                probabilities=self.probabilities,
                features=self.features,
            )


def collect(predictions: "Predictions") -> RasterSums:
    """Sum what a network says of the patches of each raster."""
    index, city = intervals.group_by_raster(predictions.true, predictions.rasters)
    cities = len(predictions.classes)
    by_raster = np.argsort(index, kind="stable")
    groups = np.split(by_raster, np.cumsum(np.bincount(index))[:-1]) if len(index) else []
    predicted = predictions.predicted
    sums = RasterSums(
        classes=list(predictions.classes),
        rasters=[predictions.rasters[patches[0]] for patches in groups],
        city=city.astype(np.int64),
        patches=np.array([len(patches) for patches in groups], np.int64),
        confusion=_rows([np.bincount(predicted[p], minlength=cities) for p in groups], cities),
        probabilities=_rows(_sums_of(predictions.probabilities, groups), cities),
        features=_rows(_sums_of(predictions.features, groups), predictions.features.shape[1]),
    )
    return merge_many(replace(sums, features=sums.features.astype(np.float32)))


def _sums_of(values: np.ndarray, groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Sum the rows of values (N, ...) that each group names, one group at a time."""
    return [values[patches].sum(0, dtype=np.float64) for patches in groups]


def _rows(rows: list[np.ndarray], columns: int) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, columns))


def merge_many(sums: RasterSums, most: int = MOST_OF_A_CITY) -> RasterSums:
    """Put together the rasters of cities that have more than `most`, so that these have `most`.

    Which go together is drawn, seeded. Rasters that are drawn anew in such groups vary as they do
    one by one (random groups: Wolter, Introduction to Variance Estimation, 2007, chapter 2). A
    group has its first raster's name.
    """
    counts = sums.rasters_of_cities()
    if counts.max(initial=0) <= most:
        return sums
    rng = np.random.default_rng(0)
    group = np.empty(len(sums.city), np.int64)
    for city, count in enumerate(counts):
        groups = np.arange(count) % most
        group[sums.city == city] = city * most + rng.permutation(groups)
    kept, first, index = np.unique(group, return_index=True, return_inverse=True)

    def add(values: np.ndarray) -> np.ndarray:
        added = np.zeros((len(kept), *values.shape[1:]), values.dtype)
        np.add.at(added, index, values)
        return added

    return RasterSums(
        classes=sums.classes,
        rasters=[sums.rasters[raster] for raster in first],
        city=sums.city[first],
        patches=add(sums.patches),
        confusion=add(sums.confusion),
        probabilities=add(sums.probabilities),
        features=add(sums.features.astype(np.float64)).astype(np.float32),
    )


def load(path: str | Path) -> RasterSums:
    """Read raster_sums.npz; InputError, in one line, if it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise _refusal(path, "not there")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive)
        with np.load(path, allow_pickle=False) as found:
            names = json.loads(found["names"].tobytes().decode("ascii"))
            arrays = {
                name: found[name]
                for name in ("city", "patches", "confusion", "probabilities", "features")
            }
        sums = RasterSums(names["classes"], names["rasters"], **arrays)
        _check_shapes(sums)
        _check_values(sums)
    except DAMAGE as error:
        missing = isinstance(error, KeyError)
        raise _refusal(path, f"it has no {error.args[0]}" if missing else str(error)) from None
    return sums


def _check_archive(archive: zipfile.ZipFile) -> None:
    """ValueError for compressed members: a small file could unpack to any size."""
    if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
        raise ValueError("its arrays are compressed")


def _check_shapes(sums: RasterSums) -> None:
    """ValueError where the parts do not fit together."""
    for names in (sums.classes, sums.rasters):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("names that are no texts")
    m = len(sums.rasters)
    k = len(sums.classes)
    expected = {"city": (m,), "patches": (m,), "confusion": (m, k), "probabilities": (m, k)}
    for name, shape in expected.items():
        if getattr(sums, name).shape != shape:
            raise ValueError(f"{name}: shape {getattr(sums, name).shape}, not {shape}")
    if sums.features.ndim != 2 or len(sums.features) != m:
        raise ValueError(f"features: shape {sums.features.shape}, not ({m}, D)")


def _check_values(sums: RasterSums) -> None:
    """ValueError for numbers that a test cannot have given."""
    for name in ("city", "patches", "confusion"):
        if getattr(sums, name).dtype.kind != "i":
            raise ValueError(f"{name}: no whole numbers")
    for name in ("probabilities", "features"):
        values = getattr(sums, name)
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            raise ValueError(f"{name}: no finite numbers")
    if ((sums.city < 0) | (sums.city >= len(sums.classes))).any() or (sums.patches < 1).any():
        raise ValueError("numbers of cities or of patches out of range")
    if (sums.confusion < 0).any() or (sums.confusion.sum(1) != sums.patches).any():
        raise ValueError("confusion: does not sum up to the patches")


def _refusal(path: Path, reason: str) -> InputError:
    return InputError(
        f"{printable(path)}: no whole file of test_classification.py ({printable(reason)[:200]});"
        " run it again"
    )
