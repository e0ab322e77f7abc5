"""What each section of the page tells: plain data that its template puts into words.

A section's template is templates/<id>.html.j2; there `view` is what its function here gives.
A new section is a function here, its line in `sections`, and its template.
"""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dl_slicer.report import charts, confusion, words
from dl_slicer.report.commands import Command, commands
from dl_slicer.report.cues_section import cues
from dl_slicer.report.records import (
    City,
    ConfusedPair,
    Metrics,
    Neighbours,
    Pair,
    PatchSet,
    Picture,
    Portrait,
    Results,
    Training,
)

FEW_RASTERS = 30
MOST_DISAGREEING = 12
MOST_CITIES_IN_A_NARROW_PICTURE = 12
MOST_CITIES_ALL_OPEN = 8
PORTRAITS_A_ROLE = 4


@dataclass(frozen=True)
class Section:
    """A part of the page; id: its address and the name of its template."""

    id: str
    heading: str
    view: object | None


def sections(results: Results) -> list[Section]:
    """Give the sections in the page's order, without those that the results lack."""
    known: tuple[tuple[str, str, Callable[[Results], object | None]], ...] = (
        ("accuracy", "How good it is", accuracy),
        ("cities", "City by city", city_table),
        ("confusions", "What is taken for what", confusions),
        ("resemblance", "Which cities resemble each other", resemblance),
        ("portraits", "What makes each city itself", portraits),
        ("cues", "What does it go by?", cues),
        ("calibration", "Does it know when it is unsure?", calibration),
        ("training", "How it was trained", training),
        ("reproduce", "How to reproduce it", reproduce),
    )
    made = [Section(name, heading, make_view(results)) for name, heading, make_view in known]
    return [section for section in made if section.view is not None]


# How good it is


@dataclass(frozen=True)
class Accuracy:
    """The easiest cities (all that share the best accuracy) and the hardest one, if they differ."""

    easiest: list[City]
    hardest: City | None
    few_rasters: bool


def accuracy(results: Results) -> Accuracy:
    """Pick what stands out among the cities."""
    few_rasters = results.metrics.n_rasters < FEW_RASTERS
    known = [city for city in results.cities if city.accuracy is not None]
    known.sort(key=lambda city: city.accuracy)
    if not known or known[0].accuracy == known[-1].accuracy:
        return Accuracy([], None, few_rasters)
    easiest = [city for city in known if city.accuracy == known[-1].accuracy]
    return Accuracy(easiest, known[0], few_rasters)


# City by city


@dataclass(frozen=True)
class CityTable:
    """rows: each city with its portrait's anchor, None where it has none."""

    rows: list[tuple[City, str | None]]
    without_interval: int  # cities with patches, but too few rasters for an interval


def city_table(results: Results) -> CityTable:
    """Link the cities to their portraits."""
    pictured = {portrait.city for portrait in results.portraits}
    return CityTable(
        rows=[
            (city, _anchor(number) if city.city in pictured else None)
            for number, city in enumerate(results.cities)
        ],
        without_interval=sum(city.ci95 is None and city.n > 0 for city in results.cities),
    )


def _anchor(number: int) -> str:
    return f"city-{number}"


# What is taken for what


@dataclass(frozen=True)
class Confusions:
    """The matrix as a drawing, and the pairs that are confused most often."""

    matrix: confusion.Matrix
    wrong: int
    pairs: list[ConfusedPair]


def confusions(results: Results) -> Confusions | None:
    """Lay out the confusion matrix."""
    if results.confusion is None:
        return None
    matrix = confusion.lay_out(results.confusion)
    return Confusions(matrix, results.metrics.n - matrix.right, results.metrics.confused_pairs)


# Which cities resemble each other


@dataclass(frozen=True)
class Sureness:
    """How many cities have a nearest one, by features, that draws of the rasters tell apart."""

    told: int  # cities
    not_told: int
    one_raster: int  # cities of which that cannot be known
    patches_as_rasters: bool  # it is not known which patches are of one raster


@dataclass(frozen=True)
class Resemblance:
    """The pairs that are alike most by either view, and where the views disagree."""

    by_features: Pair | None
    by_confusion: Pair | None
    disagreeing: list[str]  # their labels
    more_disagreeing: int  # than are named
    sure: Sureness | None
    rows: list[Neighbours]
    picture: Picture | None
    wide_picture: bool


def resemblance(results: Results) -> Resemblance | None:
    """Pick the pairs and cities that the text names."""
    if not results.neighbours:
        return None
    disagreeing = [results.label(row.city) for row in results.neighbours if row.views == "disagree"]
    return Resemblance(
        by_features=_largest(results.pairs, lambda pair: pair.features),
        by_confusion=_largest(results.pairs, lambda pair: pair.confusion),
        disagreeing=disagreeing[:MOST_DISAGREEING],
        more_disagreeing=len(disagreeing[MOST_DISAGREEING:]),
        sure=_sureness(results),
        rows=results.neighbours,
        picture=results.similarity,
        wide_picture=len(results.neighbours) > MOST_CITIES_IN_A_NARROW_PICTURE,
    )


def _sureness(results: Results) -> Sureness | None:
    """Count what is told apart; None for results of before draws were made."""
    counts = Counter(row.features_sure.told_apart for row in results.neighbours)
    if set(counts) == {""}:
        return None
    return Sureness(
        told=counts["yes"],
        not_told=counts["no"],
        one_raster=counts["one raster"],
        patches_as_rasters=results.metrics.n_rasters == results.metrics.n,
    )


def _largest(pairs: Iterable[Pair], measure: Callable[[Pair], float | None]) -> Pair | None:
    """The pair of which a resemblance above 0 is largest."""
    known = [pair for pair in pairs if (measure(pair) or 0) > 0]
    return max(known, key=measure, default=None)


# What makes each city itself


@dataclass(frozen=True)
class Group:
    """The portraits of one role; for all of them the same city is explained."""

    role: str
    explained: str
    available: int
    overlap: bool  # patches were left out since they overlap those that are there
    portraits: list[Portrait]


@dataclass(frozen=True)
class PortrayedCity:
    """A city with its groups of portraits."""

    anchor: str
    city: City
    open: bool
    groups: list[Group]


@dataclass(frozen=True)
class Portraits:
    """The cities that have portraits, and the names of those that have none."""

    cities: list[PortrayedCity]
    missing: list[str]


def portraits(results: Results) -> Portraits | None:
    """Group the portraits by city and role."""
    if not results.portraits:
        return None
    by_city: dict[str, dict[str, list[Portrait]]] = {}
    for portrait in results.portraits:
        by_role = by_city.setdefault(portrait.city, {})
        by_role.setdefault(portrait.role, []).append(portrait)
    all_open = len(results.cities) <= MOST_CITIES_ALL_OPEN
    portrayed: list[PortrayedCity] = []
    for number, city in enumerate(results.cities):
        if city.city in by_city:
            groups = [_group(role, found) for role, found in by_city[city.city].items()]
            is_open = all_open or not portrayed
            portrayed.append(PortrayedCity(_anchor(number), city, is_open, groups))
    missing = [city.city for city in results.cities if city.city not in by_city]
    return Portraits(portrayed, missing)


def _group(role: str, found: list[Portrait]) -> Group:
    available = found[0].available
    overlap = len(found) < min(available, PORTRAITS_A_ROLE)
    return Group(role, found[0].explained, available, overlap, found)


# Does it know when it is unsure?


@dataclass(frozen=True)
class Calibration:
    """The reliability diagram, if there is one."""

    picture: Picture | None


def calibration(results: Results) -> Calibration:
    """Show the reliability diagram."""
    return Calibration(results.reliability)


# How it was trained


@dataclass(frozen=True)
class Progress:
    """What the log tells, in numbers and curves; shares lie in 0 ... 1."""

    epochs: int
    train_accuracy: float
    val_accuracy: float
    best_val_accuracy: float
    best_epoch: int
    charts: list[charts.Chart]


@dataclass(frozen=True)
class TrainingFacts:
    """What is known about the training, as (what, words), and its progress if there is a log."""

    facts: list[tuple[str, str]]
    progress: Progress | None


def training(results: Results) -> TrainingFacts:
    """Collect what the files tell about the training."""
    possible = [
        ("Network", _network(results)),
        ("Trained on", _trained_on(results.training)),
        ("Measured on", _measured_on(results)),
        *_patches(results),
        ("Held out", _which_site(results.patch_set)),
        ("Train sites", _train_sites(results.training_set)),
        ("Held-out sites", _held_out(results)),
        ("Recipe", _recipe(results.training)),
        ("Epoch measured", _epoch_measured(results)),
    ]
    facts = [(what, text) for what, text in possible if text]
    return TrainingFacts(facts, _progress(results) if results.log else None)


def _network(results: Results) -> str:
    name = words.network_name(results.metrics.arch)
    weights = results.training.settings.get("weights") if results.training else None
    if weights is None:
        return name
    start = {
        "none": "from scratch",
        "imagenet": "from ImageNet weights",
        "imagenet-v2": "from ImageNet weights (V2)",
    }.get(str(weights), f"from {weights}")
    return f"{name}, {start}"


def _trained_on(training: Training | None) -> str:
    if training is None or not training.train:
        return ""
    return (
        f"{words.count(training.train, 'patch', 'patches')} of"
        f" {words.count(training.cities, 'city', 'cities')};"
        f" watched on {words.count(training.val, 'patch', 'patches')} (val)"
    )


def _measured_on(results: Results) -> str:
    metrics = results.metrics
    patches = words.count(metrics.n, "patch", "patches")
    return f"{patches} of {words.count(metrics.n_rasters, 'raster')} ({metrics.split})"


def _which_site(patch_set: PatchSet | None) -> str:
    """Which site of each city is held out, and where val comes from, where not as published."""
    if patch_set is None or (patch_set.held_out, patch_set.val_from) == (1, "half"):
        return ""
    number = patch_set.held_out
    place = "the last site" if number == 1 else f"site number {number}, counted from the last"
    origins = {
        "half": "its left half is test, its right half val",
        "site": "the whole of it is test, another site val, in cities of three sites or more",
    }
    return f"of each city {place}: {origins[patch_set.val_from]}"


def _train_sites(training_set: PatchSet | None) -> str:
    """To how many sites of each city training was limited, where it was."""
    most = training_set.train_sites if training_set else None
    return "" if most is None else f"at most {most} of each city, drawn of those there are"


def _held_out(results: Results) -> str:
    """How far held-out sites lie from training, where the set knows."""
    distances = results.patch_set.held_out_distance if results.patch_set else {}
    if not distances:
        return ""
    nearest = min(distances, key=distances.get)
    parts = [f"{results.label(nearest)} {distances[nearest]:,.0f} m from the nearest train raster"]
    if len(distances) > 1:
        furthest = max(distances, key=distances.get)
        middle = statistics.median(distances.values())
        parts += [
            f"{results.label(furthest)} {distances[furthest]:,.0f} m",
            f"{middle:,.0f} m in the middle",
        ]
    return ", ".join(parts)


def _patches(results: Results) -> list[tuple[str, str]]:
    """How large patches are and how dense: in one line if they were so in training and test."""
    metrics = results.metrics
    trained = _sizes(results.training)
    measured = _sizes(metrics) or _sizes(results.patch_set)
    if trained == measured:
        return [("Patches", trained)]
    if metrics.trained_stride not in (None, metrics.stride):
        measured += f" (in training every {metrics.trained_stride})"
    return [("Patches trained on", trained), ("Patches measured on", measured)]


def _sizes(sizes: Training | Metrics | PatchSet | None) -> str:
    if sizes is None or None in (sizes.patch_size, sizes.stride, sizes.image_size):
        return ""
    return (
        f"{sizes.patch_size} × {sizes.patch_size} pixels every {sizes.stride},"
        f" seen at {sizes.image_size} × {sizes.image_size}"
    )


def _recipe(training: Training | None) -> str:
    if training is None:
        return "not known: no config.json beside the checkpoint"
    phrases = {
        "recipe": "{}",
        "optimizer": "{}",
        "lr": "rate {}",
        "batch_size": "batches of {}",
        "epochs": "{} epochs",
        "dtype": "{}",
        "seed": "seed {}",
    }
    settings = training.settings
    if settings.get("probe") is True:
        phrases = {"recipe": "{}: the last layer alone", "dtype": "{}", "seed": "seed {}"}
    return ", ".join(
        phrase.format(settings[key])
        for key, phrase in phrases.items()
        if settings.get(key) is not None
    )


def _epoch_measured(results: Results) -> str:
    epoch = results.metrics.epoch
    if epoch is None:
        return ""
    is_best = Path(results.metrics.checkpoint).name == "best.pth"
    return f"{epoch} (chosen by validation accuracy)" if is_best else str(epoch)


def _progress(results: Results) -> Progress:
    log = results.log
    best = max(log, key=lambda row: row.val_accuracy)
    chosen = results.metrics.epoch
    drawn = [charts.accuracy_chart(log, chosen), charts.loss_chart(log, chosen)]
    return Progress(
        epochs=len(log),
        train_accuracy=log[-1].train_accuracy,
        val_accuracy=log[-1].val_accuracy,
        best_val_accuracy=best.val_accuracy,
        best_epoch=best.epoch,
        charts=[chart for chart in drawn if chart is not None],
    )


# How to reproduce it


@dataclass(frozen=True)
class Version:
    """A package or a circumstance, at the test and at the training (None: not known)."""

    what: str
    measured_with: str
    trained_with: str | None


@dataclass(frozen=True)
class Reproduction:
    """The commands in the order of the work, the versions, and config.json as text."""

    commands: list[Command]
    versions: list[Version]
    settings: str | None


def reproduce(results: Results) -> Reproduction:
    """Collect what somebody needs who wants the same numbers again."""
    trained = results.training
    settings = None
    if trained:
        settings = json.dumps(trained.settings, indent=1, ensure_ascii=False)
    return Reproduction(commands(results), _versions(results), settings)


def _versions(results: Results) -> list[Version]:
    metrics = results.metrics
    measured = metrics.versions | {"device": metrics.device, "precision": metrics.precision}
    trained: dict[str, object] = {}
    if results.training:
        settings = results.training.settings
        trained = {"device": settings.get("device_name"), "precision": settings.get("dtype")}
        trained |= results.training.versions
    return [
        Version(what, str(version), str(trained[what]) if trained.get(what) else None)
        for what, version in measured.items()
        if version is not None
    ]
