"""What the result files say, as plain data: a class for each file or row of a file.

Shares lie in 0 ... 1. None is what was not to be had.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dl_slicer.cities import city_code, labels
from dl_slicer.report.cues_files import Cues

# Which patches of a city a portrait shows. The second and fourth stand in where there are none of
# the first and third.
ROLES = ("typical", "least unlike", "taken for neighbour", "closest to neighbour")


@dataclass(frozen=True)
class ConfusedPair:
    """Two cities, and how many patches of each were taken for the other."""

    a: str
    b: str
    n: int
    share: float
    a_as_b: int
    b_as_a: int


@dataclass(frozen=True)
class Metrics:
    """What metrics.json says."""

    arch: str
    split: str
    checkpoint: str
    data: str
    epoch: int | None
    tta: bool
    n: int
    n_rasters: int
    accuracy: float | None
    accuracy_ci95: tuple[float, float] | None
    interval: str
    top5_accuracy: float | None
    raster_accuracy: float | None
    balanced_accuracy: float | None
    macro_f1: float | None
    ece: float | None
    views_rank_correlation: float | None
    confused_pairs: list[ConfusedPair]
    device: str | None
    precision: str | None
    versions: dict[str, Any]
    patch_size: int | None  # of the patches measured on; None also in results of before
    stride: int | None
    image_size: int | None
    trained_stride: int | None
    allow_overlap: bool = False  # whether some ground is in training and in test
    temperature: float | None = None  # of the stated probabilities; None: not known, it is 1
    ece_untempered: float | None = None  # None in results of before
    raster_accuracy_untempered: float | None = None  # None in results of before


@dataclass(frozen=True)
class City:
    """A row of per_city.csv."""

    city: str
    n: int
    rasters: int
    accuracy: float | None
    ci95: tuple[float, float] | None
    interval: str
    precision: float | None
    f1: float | None
    most_confused_with: str


@dataclass(frozen=True)
class Confusion:
    """confusion_matrix.csv: counts[i][j] patches of city i were taken for city j."""

    cities: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class HowSure:
    """What draws of the rasters say of the first neighbour of a city in a view."""

    share: float | None = None  # of the draws in which it came first
    told_apart: str = ""  # from all others: yes, no, one raster; "": not known, or no neighbour


@dataclass(frozen=True)
class Neighbours:
    """A row of nearest.csv: at most three cities by either view, the nearest first."""

    city: str
    by_confusion: list[str]
    by_features: list[str]
    views: str
    confusion_sure: HowSure = HowSure()
    features_sure: HowSure = HowSure()


@dataclass(frozen=True)
class Pair:
    """A row of similarity.csv."""

    a: str
    b: str
    confusion: float | None
    features: float | None


@dataclass(frozen=True)
class Picture:
    """A PNG file as it is; width and height in pixels."""

    content: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Portrait:
    """A row of portraits.csv; tile: a JPEG of the patch over its mask, side x 2 side pixels."""

    city: str
    role: str
    true: str
    explained: str
    probability: float
    available: int
    tile: bytes
    side: int


@dataclass(frozen=True)
class Epoch:
    """A row of log.csv. A loss may be infinite or no number."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Training:
    """What config.json says; settings: all of it."""

    settings: dict[str, Any]
    given: list[str] | None  # the flags as typed; None: a run of before they were written down
    data: str | None
    versions: dict[str, Any]
    cities: int
    train: int
    val: int
    patch_size: int | None
    stride: int | None
    image_size: int | None


@dataclass(frozen=True)
class PatchSet:
    """What dataset.json says; train and val: how many patches."""

    raw: str
    patch_size: int
    stride: int
    image_size: int
    test_b: int | None
    seed: int | None
    cities: int
    train: int
    val: int
    # Metres by city, of georeferenced sets.
    held_out_distance: dict[str, float] = field(default_factory=dict)
    held_out: int = 1  # which site of each city is held out, counted from the last one
    val_from: str = "half"  # or site: where val patches come from
    train_sites: int | None = None  # to how many of each city the set was limited
    seen: tuple[str, ...] = ()  # the flags that say how georeferenced rasters were seen


@dataclass(frozen=True)
class Results:
    """All that the page tells; an empty list or None for a file that is not there."""

    measured_at: float  # seconds since the epoch
    metrics: Metrics
    cities: list[City]
    confusion: Confusion | None
    neighbours: list[Neighbours]
    pairs: list[Pair]
    similarity: Picture | None
    reliability: Picture | None
    portraits: list[Portrait]
    training: Training | None
    log: list[Epoch]
    patch_set: PatchSet | None  # that was measured on
    training_set: PatchSet | None
    has_logits: bool = False  # with --logits
    cues: Cues | None = None  # with --cues
    cues_picture: Picture | None = None

    @cached_property
    def _labels(self) -> dict[str, str]:
        names = [city.city for city in self.cities]
        return dict(zip(names, labels(names), strict=True))

    def label(self, city: str) -> str:
        """Give the short name of a city, by which it is told from all others."""
        return self._labels.get(city) or city_code(city)
