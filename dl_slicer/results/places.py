"""Which city is this like? Pictures or rasters of any place, cut into patches as the training data were: the cities that they resemble.

Used by test_classification.py --images.
"""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from dl_slicer.cli import InputError, atomic, shown, write_rows
from dl_slicer.model import checkpoints as classifier
from dl_slicer.patch_sets import batching as loader
from dl_slicer.patch_sets import reading as patches
from dl_slicer.results import panels as figures
from relevance_cam import rasters

MOST = 5  # cities named for a file
NAMED = 10  # cities with a colour of their own in a figure
PANEL = 1000  # pixels of the longer side of a figure's pictures
COLUMNS = (
    "file",
    "patches",
    "rank",
    "city",
    "code",
    "mean_probability",
    "share_of_patches",
    "figure",
)
ALL = "all files"


def find(paths, patch_size):
    """[(file, width, height)] of files and of the images below folders. InputError, a line a fault, if one cannot be used: from
    the header alone, so that it comes before hours of work."""
    files, faults = [], []
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in patches.IMAGES
                and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
            if not found:
                faults.append(
                    f"--images {shown(path)}: no images in this folder ({', '.join(sorted(patches.IMAGES))})"
                )
        elif not path.exists():
            faults.append(f"--images {shown(path)}: no such file")
            found = []
        for file in found:
            try:
                with patches.opened(file) as image:
                    width, height = image.size
            except patches.UnreadableImage as error:
                faults.append(f"--images {shown(file)}: {error}")
                continue
            if min(width, height) < patch_size:
                faults.append(
                    f"--images {shown(file)}: {width} x {height} pixels, smaller than a patch of {patch_size} x {patch_size} pixels; "
                    "take a larger picture of the same ground resolution"
                )
            files.append((file, width, height))
    if faults:
        raise InputError("\n".join(faults))
    return list(dict.fromkeys(files))


def compare(paths, model, checkpoint, classes, device, dtype, out):
    """Print, and write to <out>/places.csv and a picture for each raster of several patches, which cities the files resemble.

    InputError at the end, when all else is written, if the pixels of a file could not be read.
    """
    # What a file of other people's does not say is as published.
    image_size, patch_size, stride = (
        checkpoint["image_size"],
        checkpoint["patch_size"] or 480,
        checkpoint["stride"] or 240,
    )
    step = max(1, round(stride * image_size / patch_size))
    files = find(paths, patch_size)
    out.mkdir(parents=True, exist_ok=True)
    codes, rows, faults, names = [patches.code(city) for city in classes], [], [], set()
    sums, votes, count = np.zeros(len(classes)), np.zeros(len(classes), int), 0
    print(
        f"{'file':<40}{'patches':>8}   most similar cities: mean probability of its patches (share of patches that it is the likeliest for)"
    )
    with tqdm(
        total=sum(width * height for _, width, height in files) / 1e6,
        desc="comparing",
        unit=" megapixels",
        disable=None,
        leave=False,
    ) as bar:
        for file, width, height in files:
            try:
                raster = patches.read_image(file)
            except patches.UnreadableImage as error:
                faults.append(f"--images {shown(file)}: {error}")
                continue
            # Resized as a whole and then cut, as preprocessing.py does.
            pixels = np.asarray(
                patches.resize(
                    raster,
                    [max(image_size, round(n * image_size / patch_size)) for n in raster.size],
                )
            )
            corners, probabilities = classify(model, pixels, checkpoint, step, device, dtype)
            best = probabilities.argmax(1)
            figure = ""
            if len(corners) > 1:
                figure = next(
                    name
                    for name in (
                        f"{file.stem}{number}.jpg"
                        for number in ("", *(f"_{k}" for k in range(2, len(files) + 2)))
                    )
                    if name not in names
                )
                names.add(figure)
                with atomic(out / figure, sync=False) as opened:
                    draw(
                        raster,
                        by_place(corners, probabilities, pixels.shape, image_size, step),
                        codes,
                        shown(Path(*file.parts[-3:])),
                    ).save(opened, "JPEG", quality=88)
            found = ranked(
                probabilities.mean(0), np.bincount(best, minlength=len(classes)) / len(best)
            )
            say(str(file), len(best), found, codes, bar)
            rows += as_rows(file, len(best), found, classes, codes, figure)
            sums, votes, count = (
                sums + probabilities.sum(0),
                votes + np.bincount(best, minlength=len(classes)),
                count + len(best),
            )
            bar.update(width * height / 1e6)
    if count:
        found = ranked(sums / count, votes / count)
        if len(files) > 1:
            say(ALL, count, found, codes)
        rows += as_rows(ALL, count, found, classes, codes, "")
        write_rows(out / "places.csv", COLUMNS, rows)
        print(
            f"each patch of {patch_size} x {patch_size} pixels counts alike, so a large raster counts more; a share is no proof: "
            f"the network knows only these {len(classes)} cities\nresults: {out}/places.csv"
            + (", a picture for each raster" if names else "")
        )
    if faults:
        raise InputError("\n".join(faults))


def classify(model, pixels, checkpoint, step, device, dtype):
    """Upper left corners (n, 2) as (y, x) of the windows that cover pixels (uint8 (H, W, 3) at the network's scale), and probabilities (n, K)."""
    size, batch_size = checkpoint["image_size"], 512 if device.type == "cuda" else 64
    corners = np.array(
        [
            (y, x)
            for y in rasters.tiles(pixels.shape[0], size, step)
            for x in rasters.tiles(pixels.shape[1], size, step)
        ]
    )
    found = []
    with torch.inference_mode(), classifier.autocast(device, dtype):
        for i in range(0, len(corners), batch_size):
            batch = torch.from_numpy(
                np.stack(
                    [pixels[y : y + size, x : x + size] for y, x in corners[i : i + batch_size]]
                )
            )
            logits = model(
                loader.normalise(batch.to(device), checkpoint["mean"], checkpoint["std"])
            )
            found.append(logits.float().softmax(1).double().cpu())
    return corners, torch.cat(found).numpy()


def by_place(corners, probabilities, shape, size, step):
    """Mean probabilities (rows, cols, K) of the patches over each place, on a grid a step wide."""
    sums = np.zeros((-(-shape[0] // step), -(-shape[1] // step), probabilities.shape[1]))
    counts = np.zeros(sums.shape[:2])
    for (y, x), probability in zip(corners, probabilities):
        cell = (slice(y // step, -(-(y + size) // step)), slice(x // step, -(-(x + size) // step)))
        sums[cell] += probability
        counts[cell] += 1
    return sums / counts[..., None]


def ranked(probability, share):
    """[(class, mean probability, share of patches)] of the most similar cities, by falling mean probability."""
    return [
        (city, float(probability[city]), float(share[city]))
        for city in np.argsort(-probability, kind="stable")[:MOST].tolist()
    ]


def say(name, count, found, codes, bar=None):
    text = "  ".join(
        f"{shown(codes[city])} {100 * probability:.1f} % ({100 * share:.0f} %)"
        for city, probability, share in found
    )
    name = shown(name)
    name = (
        name if len(name) < 40 else f"...{name[-36:]}"
    )  # rasters of different sites often have the same name: their folder tells them apart
    (bar.write if bar is not None else print)(f"{name:<40}{count:>8}   {text}")


def as_rows(file, count, found, classes, codes, figure):
    return [
        (
            file,
            count,
            rank,
            classes[city],
            codes[city],
            f"{probability:.6f}",
            f"{share:.6f}",
            figure,
        )
        for rank, (city, probability, share) in enumerate(found, 1)
    ]


def draw(raster, probability, codes, title):
    """A Pillow image: the raster, and beside it (below, if it is wide) each place in the colour of its most similar city, with a legend.

    probability: (rows, cols, K), of places on a grid. Cities beyond the NAMED most common are grey.
    """
    best = probability.argmax(-1)
    shares = np.bincount(best.ravel(), minlength=len(codes)) / best.size
    common = [city for city in np.argsort(-shares, kind="stable").tolist() if shares[city]]
    named, others = common[:NAMED], common[NAMED:]
    colours = (
        np.array(matplotlib.colormaps["tab10"].colors)[[0, 1, 2, 3, 4, 8, 6, 9, 5, 7]] * 255
    ).astype(np.uint8)
    colours[9] = (40, 40, 40)  # tab10's grey is kept for the others
    palette = np.full((len(codes), 3), 150, np.uint8)
    palette[named] = colours[: len(named)]
    ratio = PANEL / max(raster.size)
    size = tuple(max(1, round(n * ratio)) for n in raster.size)
    picture = raster.resize(size, Image.Resampling.LANCZOS)
    places = Image.fromarray(palette[best]).resize(size, Image.Resampling.NEAREST)
    panels = [
        ("raster", picture),
        ("most similar city of each place", Image.blend(picture, places, 0.5)),
    ]

    gap = 12
    legend = [(palette[city], f"{codes[city]}  {100 * shares[city]:.0f} %") for city in named]
    legend += (
        [((150, 150, 150), f"{len(others)} others  {100 * shares[others].sum():.0f} %")]
        if others
        else []
    )
    beside = raster.height > 0.6 * raster.width
    width = max(600, 2 * size[0] + 3 * gap if beside else size[0] + 2 * gap)
    lines = flow(legend, width - 2 * gap)
    page = Image.new(
        "RGB", (width, 60 + (size[1] + 40) * (1 if beside else 2) + 34 * len(lines) + gap), "white"
    )
    pen = ImageDraw.Draw(page)
    figures.text(pen, (gap, 14), title, 28, bold=True, width=width - 2 * gap)
    for k, (label, panel) in enumerate(panels):
        x, y = (gap + k * (size[0] + gap), 60) if beside else (gap, 60 + k * (size[1] + 40))
        figures.text(pen, (x, y), label, 20, figures.PALE, width=size[0])
        page.paste(panel, (x, y + 30))
    y = page.height - 34 * len(lines)
    for line in lines:
        for x, colour, label in line:
            pen.rectangle(
                (gap + x, y + 1, gap + x + 20, y + 21), fill=tuple(int(v) for v in colour)
            )
            figures.text(pen, (gap + x + 30, y), label, 20, width=width - 2 * gap - 30)
        y += 34
    return page


def flow(legend, width):
    """Lines of a legend: (colour, label) as (x, colour, label), as many in a line as fit."""
    lines, x = [[]], 0
    for colour, label in legend:
        length = 30 + figures.font(20).getlength(label) + 36
        if x and x + length > width:
            lines.append([])
            x = 0
        lines[-1].append((x, colour, label))
        x += length
    return lines
