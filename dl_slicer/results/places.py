"""Which city is this like?

Pictures or rasters of any place, cut into patches as the training data were: the cities that they
resemble. Used by test_classification.py --images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dl_slicer import cities
from dl_slicer.cli import InputError, printable
from dl_slicer.files import write_rows
from dl_slicer.model import devices, evaluation, temperature
from dl_slicer.model.checkpoints import Checkpoint
from dl_slicer.model.familiarity import Known
from dl_slicer.patch_sets import image_files, transforms
from dl_slicer.patch_sets.image_files import UnreadableImage
from dl_slicer.results import explorers, familiar_places, panels, raster_figures, raster_windows
from dl_slicer.results.familiar_places import Places
from dl_slicer.results.raster_windows import SeenRaster, Windows
from dl_slicer.results.result_folder import Call, new_results

NAMED = 5  # cities named for a file
GIS = (".places.tif", ".certainty.tif", ".probabilities.tif", ".places.geojson")
FAMILIARITY = ".familiarity.tif"  # for a GIS, too, where it is known
ENDINGS = (
    ".jpg",
    *GIS,
    FAMILIARITY,
    f"{GIS[0]}.aux.xml",
)  # of the files of a raster, besides the explorer's
ALL = "all files"
HEADLINE = (
    f"{'file':<40}{'patches':>8}   most similar cities: mean probability of its patches"
    " (share of patches that it is the likeliest for)"
)


class ImageFile(NamedTuple):
    """An image, the folder that it was found by, and how large what is covered of it is."""

    path: Path
    root: Path
    megapixels: float


def find_files(paths: Sequence[str | Path], checkpoint: Checkpoint) -> list[ImageFile]:
    """Files and the images below folders, each once.

    InputError, a line a fault, if one cannot be used: from the header alone, so that it comes
    before hours of work.
    """
    files = {}
    faults = []
    for path in map(Path, paths):
        try:
            listed = _list_images(path)
        except InputError as error:
            faults.append(str(error))
            continue
        root = path if path.is_dir() else path.parent
        for file in listed:
            try:
                files.setdefault(file, _check_image(file, root, checkpoint))
            except InputError as error:
                faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return list(files.values())


def _list_images(path: Path) -> list[Path]:
    """Give the file, or the images below the folder but for hidden ones, in sorted order."""
    if not path.exists():
        raise InputError(f"--images {printable(path)}: no such file")
    if not path.is_dir():
        return [path]
    found = [file for file in path.rglob("*") if _is_visible_image(file, path)]
    if not found:
        suffixes = ", ".join(sorted(image_files.SUFFIXES))
        raise InputError(f"--images {printable(path)}: no images in this folder ({suffixes})")
    return sorted(found)


def _is_visible_image(file: Path, folder: Path) -> bool:
    if file.suffix.lower() not in image_files.SUFFIXES or not file.is_file():
        return False
    return not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _check_image(file: Path, root: Path, checkpoint: Checkpoint) -> ImageFile:
    try:
        with raster_windows.open_raster(file, checkpoint, root) as seen:
            return ImageFile(file, root, seen.megapixels)
    except UnreadableImage as error:
        raise InputError(f"--images {printable(file)}: {error}") from None


@dataclass
class Resemblance:
    """The cities that some patches resemble."""

    patches: int
    probabilities: np.ndarray  # (K,), summed over the patches
    votes: np.ndarray  # (K,), of how many patches the city is the likeliest
    familiarity: np.ndarray | None = None  # (patches,); None: not known

    @classmethod
    def of(cls, probabilities: np.ndarray, familiarity: np.ndarray | None = None) -> "Resemblance":
        """Give that of patches with these probabilities (n, K)."""
        count, classes = probabilities.shape
        votes = np.bincount(probabilities.argmax(1), minlength=classes)
        return cls(count, probabilities.sum(0), votes, familiarity)

    def __add__(self, other: "Resemblance") -> "Resemblance":
        parts = [each for each in (self.familiarity, other.familiarity) if each is not None]
        return Resemblance(
            self.patches + other.patches,
            self.probabilities + other.probabilities,
            self.votes + other.votes,
            np.concatenate(parts) if parts else None,
        )

    def most_similar(self) -> list[tuple[int, float, float]]:
        """(class, mean probability, share of patches) of the NAMED most probable cities."""
        probability = self.probabilities / self.patches
        share = self.votes / self.patches
        order = np.argsort(-probability, kind="stable")[:NAMED]
        return [(city, float(probability[city]), float(share[city])) for city in order.tolist()]


def as_rows(
    name: str | Path, resemblance: Resemblance, classes: Sequence[str], figure: str
) -> list[dict]:
    """Give the rows of places.csv of one file, a row for each of the most similar cities."""
    codes = cities.labels(classes)
    return [
        {
            "file": name,
            "patches": resemblance.patches,
            "rank": rank,
            "city": classes[city],
            "code": codes[city],
            "mean_probability": f"{probability:.6f}",
            "share_of_patches": f"{share:.6f}",
            "familiarity": familiar_places.as_text(resemblance.familiarity),
            "verdict": familiar_places.verdict(resemblance.familiarity),
            "figure": figure,
        }
        for rank, (city, probability, share) in enumerate(resemblance.most_similar(), 1)
    ]


def as_line(name: str | Path, resemblance: Resemblance, classes: Sequence[str]) -> str:
    """Give the line of one file that is printed below HEADLINE."""
    codes = cities.labels(classes)
    similar = "  ".join(
        f"{printable(codes[city])} {100 * probability:.1f} % ({100 * share:.0f} %)"
        for city, probability, share in resemblance.most_similar()
    )
    name = printable(name)
    if len(name) >= 40:
        # The end: rasters of different sites often have the same name, their folders tell them
        # apart.
        name = f"...{name[-36:]}"
    familiar = familiar_places.at_the_end_of_a_line(resemblance.familiarity)
    return f"{name:<40}{resemblance.patches:>8}   {similar}{familiar}"


def closing_words(patch_size: int, cities: int) -> str:
    """Say what the numbers mean, and what they do not."""
    return (
        f"each patch of {patch_size} x {patch_size} pixels counts alike,"
        " so a large raster counts more; a share is no proof:"
        f" the network knows only these {cities} cities"
    )


def compare(
    paths: Sequence[str | Path],
    model: nn.Module,
    checkpoint: Checkpoint,
    classes: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    call: Call,
) -> None:
    """Print, and write to <out>/places.csv, which cities the files resemble.

    Each raster of several patches gets a figure, <out>/<its name>.jpg, the layers of its explorer
    and, if it is known where it lies, files for a GIS.
    InputError at the end, when all else is written, if the pixels of a file could not be read.
    """
    files = find_files(paths, checkpoint)
    network = Network(model, checkpoint, device, dtype)
    with new_results(call) as new:
        found = _compare_files(files, network, classes, new, call)
        if found.total is None:
            raise InputError("\n".join(found.faults))
        rows = found.rows + as_rows(ALL, found.total, classes, figure="")
        write_rows(new / "places.csv", rows[0], (row.values() for row in rows))
    if len(files) > 1:
        print(as_line(ALL, found.total, classes))
    print(closing_words(Windows.of(checkpoint).patch_size, len(classes)))
    print(familiar_places.closing_words(found.total.familiarity))
    figures = any(row["figure"] for row in rows)
    pictures = ", a picture and a page for each raster" if figures else ""
    print(f"results: {call.out}/places.csv{pictures}{found.said()}")
    if found.faults:
        raise InputError("\n".join(found.faults))


@dataclass(frozen=True)
class Network:
    """A network, and how it is fed."""

    model: nn.Module
    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype


@dataclass
class Found:
    """What was found in several files."""

    rows: list[dict]  # of places.csv
    faults: list[str]  # a line for each file that could not be read
    total: Resemblance | None = None  # of all patches
    placed: int = 0  # rasters whose place on the ground is known

    def said(self) -> str:
        """Say what was written for a GIS."""
        if not self.placed:
            return ""
        return f"; for a GIS: <raster>{', '.join(GIS)}"


def _compare_files(
    files: Sequence[ImageFile], network: Network, classes: Sequence[str], new: Path, call: Call
) -> Found:
    """Print what each file resembles, and write the answers of those of several patches."""
    # A picture that lies beside the results may have the name of its figure.
    used = {file.path.stem for file in files if file.path.parent.resolve() == call.out.resolve()}
    found = Found([], [])
    print(HEADLINE)
    total = sum(file.megapixels for file in files)
    with tqdm(total=total, desc="comparing", unit=" megapixels", disable=None, leave=False) as bar:
        for file, root, _ in files:
            try:
                with raster_windows.open_raster(file, network.checkpoint, root) as seen:
                    for remark in seen.raster.remarks:
                        bar.write(f"{printable(file)}: {printable(remark)}")
                    answers = classify(network, seen, bar)
                    figure = ""
                    if len(answers.probabilities) > 1:
                        name = explorers.pick_name(file, ENDINGS, call, used)
                        used.add(name)
                        by_place = answers.by_place(seen)
                        write_answers(new, name, file, seen, by_place, classes)
                        explorer = f"{name}{explorers.FOLDER}"
                        before = call.out / explorer
                        explorers.write(
                            new / explorer, file, seen, by_place, classes, before=before
                        )
                        found.placed += seen.is_placed
                        figure = f"{name}.jpg"
            except UnreadableImage as error:
                found.faults.append(f"--images {printable(file)}: {error}")
                continue
            resemblance = Resemblance.of(*answers)
            bar.write(as_line(file, resemblance, classes))
            found.rows += as_rows(file, resemblance, classes, figure)
            found.total = resemblance if found.total is None else found.total + resemblance
    return found


def write_answers(
    new: Path,
    name: str,
    file: Path,
    seen: SeenRaster,
    by_place: Places,
    classes: Sequence[str],
) -> None:
    """Write the figure of a raster and, if it is known where it lies, its files for a GIS.

    file: where it was read.
    """
    codes = cities.labels(classes)
    title = printable(Path(*file.parts[-3:]))
    figure = raster_figures.raster_figure(
        seen.picture, by_place.shares, codes, title, unlike=by_place.unlike
    )
    panels.save_jpeg(new / f"{name}.jpg", figure)
    if not seen.is_placed:
        return
    # GDAL takes a third of a second, which plain pictures do without.
    from dl_slicer.results import geotiffs, place_polygons

    cells = geotiffs.Cells(*by_place.shares.shape[:2], seen.transform(seen.cell), seen.raster.crs)
    geotiffs.write_places(new, name, cells, by_place, classes)
    place_polygons.write_places(new / f"{name}.places.geojson", cells, by_place, classes)


class Answers(NamedTuple):
    """What a network says of the n windows with data of a raster."""

    probabilities: np.ndarray  # float64 (n, K)
    familiarity: np.ndarray | None  # float64 (n,), NaN where it cannot be told; None: nowhere

    def by_place(self, seen: SeenRaster) -> Places:
        """Give what is said of each place: the mean probability, the median familiarity."""
        if self.familiarity is None:
            return Places(seen.by_place(self.probabilities))
        return Places(seen.by_place(self.probabilities), seen.median_by_place(self.familiarity))


def classify(network: Network, seen: SeenRaster, bar: tqdm) -> Answers:
    """Answer for the windows with data; what is read counts on a bar."""
    device = network.device
    checkpoint = network.checkpoint
    # On a CPU larger batches are as fast, but what lives longer than they do scatters over memory.
    batch_size = 512 if device.type == "cuda" else 16
    probabilities = []
    familiarity = []
    known = None
    if checkpoint.familiarity is not None:
        known = Known.of(checkpoint.familiarity, device)
    with (
        torch.inference_mode(),
        devices.autocast(device, network.dtype),
        evaluation.seen_inside(network.model if known else None) as passes,
    ):
        for _, windows in seen.batches(batch_size, bar):
            images = torch.from_numpy(windows).to(device)
            logits = network.model(transforms.normalise(images, checkpoint.mean, checkpoint.std))
            logits = logits.float()
            evaluation.check_finite(logits, network.dtype)
            stated = temperature.probabilities(logits, checkpoint.divisor)
            probabilities.append(devices.to_cpu(stated).double())
            if known:
                familiarity.append(known.familiarity(passes.pop()))
    return Answers(torch.cat(probabilities).numpy(), np.concatenate(familiarity) if known else None)
