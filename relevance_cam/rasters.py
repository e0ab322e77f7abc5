"""The saliency of a whole raster: the maps of its overlapping patches blended, beside the predicted city of each place."""

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from dl_slicer.results import panels as figures

from .quality import upsample

LONGEST = 1000  # pixels of a panel's longer side


def tiles(length, size, step):
    """Starts of windows that cover a length: every step, and one more at the end if something would be left over."""
    starts = list(range(0, length - size + 1, step))
    return starts + [length - size] * (starts[-1] + size < length)


def blend(method, pixels, size, step, normalise, target, device, batch_size=8):
    """Explain every window of a raster and put the maps together.

    pixels: uint8 (H, W, 3) at the network's scale; size, step: of the windows in those pixels; normalise: uint8 (n, size, size, 3)
    tensor to the network's input; target: class index, or None for the class with the highest mean probability.
    Returns ({layer: float32 (H, W)}, probabilities (H, W, K) on a grid a step wide, target). Each window counts most at its
    centre, where the network sees the surroundings, so no seams are left; raw maps are summed, so strong windows stay strong.
    """
    height, width = pixels.shape[:2]
    places = [(y, x) for y in tiles(height, size, step) for x in tiles(width, size, step)]
    bump = torch.hann_window(size + 2, periodic=False)[1:-1]
    bump = bump[:, None] * bump
    cells = (-(-height // step), -(-width // step))

    def windows(desc):
        for i in tqdm(
            range(0, len(places), batch_size), desc=desc, unit=" batches", disable=None, leave=False
        ):
            part = places[i : i + batch_size]
            batch = np.stack([pixels[y : y + size, x : x + size] for y, x in part])
            yield part, normalise(torch.from_numpy(batch).to(device))

    if target is None:
        with torch.inference_mode():
            target = int(
                sum(
                    method.model(images).softmax(1).double().sum(0)
                    for _, images in windows("which city")
                ).argmax()
            )
    sums, weight, probability, counts = {}, torch.zeros(height, width), None, np.zeros(cells)
    for part, images in windows("explaining"):
        maps, logits = method(images, target)
        shares = logits.double().softmax(1).cpu().numpy()
        if probability is None:
            probability = np.zeros((*cells, shares.shape[1]))
        for layer, values in maps.items():
            values = upsample(values.float(), (size, size)).cpu() * bump
            total = sums.setdefault(layer, torch.zeros(height, width))
            for (y, x), value in zip(part, values):
                total[y : y + size, x : x + size] += value
        for (y, x), share in zip(part, shares):
            weight[y : y + size, x : x + size] += bump
            cell = (
                slice(y // step, -(-(y + size) // step)),
                slice(x // step, -(-(x + size) // step)),
            )
            probability[cell] += share
            counts[cell] += 1
    return (
        {layer: (total / weight).numpy() for layer, total in sums.items()},
        probability / counts[..., None],
        target,
    )


def draw(raster, maps, probability, classes, codes, title):
    """The figure: the raster, the most probable city of each place, and the blended map of each depth."""
    ratio = LONGEST / max(raster.size)
    size = (max(1, round(raster.width * ratio)), max(1, round(raster.height * ratio)))
    picture = raster.resize(size, Image.Resampling.LANCZOS)
    best = probability.argmax(-1)
    shares = np.bincount(best.ravel(), minlength=len(classes)) / best.size
    common = [city for city in np.argsort(-shares) if shares[city]][:9]
    palette = np.full((len(classes), 3), 150, np.uint8)  # grey for what the legend does not name
    palette[common] = (np.array(matplotlib.colormaps["tab10"].colors)[: len(common)] * 255).astype(
        np.uint8
    )
    places = Image.fromarray(palette[best]).resize(size, Image.Resampling.NEAREST)
    panels = [("raster", picture), ("predicted city", Image.blend(picture, places, 0.45))]
    for layer, values in maps.items():
        low, high = np.percentile(
            values, (1, 99.5)
        )  # single hot pixels would leave a large raster blank
        values = (
            np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
        )
        panels.append(
            (
                layer,
                figures.heat(
                    picture,
                    np.asarray(
                        Image.fromarray(values.astype(np.float32)).resize(
                            size, Image.Resampling.BILINEAR
                        )
                    ),
                ),
            )
        )
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    gap = figures.GAP
    page = Image.new(
        "RGB", (columns * (size[0] + gap) + gap, 60 + lines * (size[1] + 34) + 70), "white"
    )
    pen = ImageDraw.Draw(page)
    figures.text(pen, (gap, 14), title, 26, bold=True, width=page.width - 2 * gap)
    for k, (label, panel) in enumerate(panels):
        x, y = gap + k % columns * (size[0] + gap), 60 + k // columns * (size[1] + 34)
        figures.text(
            pen, (x + size[0] / 2, y + 4), label, 18, figures.PALE, anchor="ma", width=size[0]
        )
        page.paste(panel, (x, y + 28))
    x, y = gap, page.height - 64
    for city in common:
        label = f"{codes[city]} {100 * shares[city]:.0f} %"
        length = pen.textlength(label, figures.font(16)) + 44
        if x + length > page.width:
            x, y = gap, y + 26
        pen.rectangle((x, y + 3, x + 14, y + 17), fill=tuple(int(v) for v in palette[city]))
        figures.text(pen, (x + 22, y), label, 16)
        x += length
    figures.draw_scale(page, page.width - gap - 435, page.height - 28)
    return page
