"""The folder of an explorer with known contents, as the commands that place rasters leave it."""

import json

import numpy as np
from PIL import Image

from dl_slicer.cities import colour, labels

ROWS, COLS, CELL = 4, 6, 80
WIDTH, HEIGHT = COLS * CELL, ROWS * CELL
GROUND = (90, 120, 60)  # the colour of the whole raster
NO_DATA = [5]
CITIES = ("Aa (AAA)", "Bb (BBB)", "Cc (CCC)", "Dd (DDD)", "Ee (EEE)", "Ff (FFF)", "Gg (GGG)")


def shares_of_places(cities=7):
    """uint8 (rows, cols, cities): each place resembles the next city, by 60 % and more."""
    number = np.arange(ROWS * COLS)
    shares = np.zeros((ROWS * COLS, cities), np.uint8)
    for rank, share in enumerate((153, 51, 26, 13, 8)[:cities]):
        shares[number, (number + rank) % cities] = share
    shares[:, 0] += (shares.argmax(1) == 0) * (number % 50).astype(np.uint8)
    return shares.reshape(ROWS, COLS, cities)


def made_up_explorer(folder, cities=CITIES, saliency=True, shares=True, **changes):
    """Write <folder>; changes: other values in explorer.json."""
    folder.mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT), GROUND).save(folder / "raster.jpg", quality=95)
    found = {
        "name": "2020",
        "title": "a city/site1/2020.tif",
        "width": WIDTH,
        "height": HEIGHT,
        "metres_a_pixel": 0.417,
        "patch_size": 2 * CELL,
        "cell": CELL,
        "rows": ROWS,
        "cols": COLS,
        "classes": list(cities),
        "labels": labels(cities),
        "colours": ["#{:02x}{:02x}{:02x}".format(*colour(i)) for i in range(len(cities))],
        "picture": "raster.jpg",
        "no_data": NO_DATA,
        "saliency": {},
    }
    if shares:
        shares_of_places(len(cities)).tofile(folder / "shares.u8")
        found["shares"] = "shares.u8"
    if saliency:
        layers = {f"layer{i}": f"relevance-cam.layer{i}.png" for i in (1, 4)}
        found["saliency"] = {"relevance-cam": {"target": cities[-1], "layers": layers}}
        for depth, name in layers.items():
            # layer1: nothing on the left, all on the right; layer4 the other way round.
            values = np.zeros((HEIGHT // 4, WIDTH // 4), np.uint8)
            values[:, WIDTH // 8 :] = 255
            Image.fromarray(values if depth == "layer1" else 255 - values).save(folder / name)
    (folder / "explorer.json").write_text(json.dumps(found | changes))
    return folder
