"""Draw a sample data set: made-up cities seen from above, at 0.417 m a pixel like the published rasters.

    python data/make_sample.py                                 6 cities x 3 sites x 1 raster of 2400 x 2400 pixels
    python data/make_sample.py --cities 12 --rasters 2 --size 4800
    python data/make_sample.py --cities 12 --alike 4 --light 2          hard: three groups of four cities much alike, other light at each site

Writes <out>/<City (CODE)>/<site>/<raster>.jpg, the layout that preprocessing.py reads. Files of the same names are written
again, others are left alone. The same arguments give the same bytes (with the same versions of Python, numpy and Pillow).

What makes a city (streets, buildings, roofs, trees) depends on the seed and the city's number only; the light at a site
(sun, exposure, colour cast, haze, season) on the site as well; what stands where on the raster as well. So asking for more
cities, sites or rasters changes none of the others. Light differs far more from site to site than the mean colour does
from city to city: whoever wants to tell these cities apart has to look at what is built. With --alike N cities 1 to N, N + 1
to 2 N and so on share their kind of building, street pattern and roofs, and differ by little in all else.
"""

import argparse
import math
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

METRES = 0.417  # a pixel of the raster
FINE = 2  # drawn this much larger and averaged down, for smooth edges
BAND = 512  # rows drawn at a time: the large canvas stays small
CANVAS = "CMYK"  # Pillow's plain four-channel mode, here for red, green, blue and the roughness of the surface

NAMES = [
    "Avelmar (AVM)",
    "Brindolo (BDO)",
    "Corvasha (CVS)",
    "Dunmarrow (DNW)",
    "Estravik (EVK)",
    "Fyndale (FYD)",
    "Galvessa (GVS)",
    "Harrowmoor (HWM)",
    "Iskandra (IKD)",
    "Jorvalen (JVL)",
    "Kestopol (KPL)",
    "Lumerra (LMR)",
    "Mirzabel (MZB)",
    "Norhaven (NHV)",
    "Ostrelia (OSR)",
    "Pellagrad (PGD)",
]

ROOFS = {  # colours under neutral light
    "shingle": [(124, 106, 94), (104, 92, 84), (142, 128, 116), (92, 88, 86), (132, 104, 84)],
    "zinc": [(160, 165, 170), (178, 181, 184), (142, 148, 156), (120, 126, 134)],
    "rust": [(150, 108, 84), (132, 92, 72), (172, 152, 132), (118, 106, 98), (160, 126, 100)],
    "felt": [(150, 147, 142), (128, 126, 124), (168, 163, 155), (110, 110, 112)],
    "clay": [(164, 104, 82), (150, 92, 74), (174, 122, 98), (136, 86, 72), (158, 118, 100)],
    "white": [(206, 203, 196), (188, 184, 176), (222, 220, 213), (170, 168, 164)],
    "slate": [(96, 100, 108), (112, 115, 121), (82, 86, 94), (124, 122, 122)],
    "painted": [(104, 124, 144), (118, 138, 130), (142, 88, 78), (164, 166, 168), (182, 178, 168)],
}
CARS = [
    (225, 225, 225),
    (205, 206, 208),
    (150, 152, 155),
    (60, 62, 66),
    (40, 42, 46),
    (130, 40, 38),
    (50, 66, 104),
    (120, 112, 100),
]
PATTERNS = ["grid", "radial", "organic"]

# What a kind of city is built of, as ranges: metres of a block, a street, an avenue and a lot, storeys, the share of flat
# roofs, trees a hectare, the radius of their crowns, cars along the kerb.
KINDS = {
    "houses": dict(
        length=(120, 165),
        depth=(64, 76),
        street=(9, 11),
        avenue=(17, 22),
        lot=(15, 20),
        storeys=(1, 2),
        flat=(0.03, 0.15),
        trees=(30, 70),
        crown=(2.2, 5.5),
        cars=(0.2, 0.35),
    ),
    "perimeter": dict(
        length=(90, 125),
        depth=(74, 92),
        street=(11, 14),
        avenue=(22, 28),
        lot=(13, 22),
        storeys=(5, 7),
        flat=(0.15, 0.4),
        trees=(8, 20),
        crown=(2.0, 4.0),
        cars=(0.5, 0.8),
    ),
    "packed": dict(
        length=(70, 100),
        depth=(48, 66),
        street=(5, 7),
        avenue=(13, 18),
        lot=(8, 12),
        storeys=(1, 3),
        flat=(0.5, 0.8),
        trees=(4, 14),
        crown=(1.8, 4.5),
        cars=(0.1, 0.2),
    ),
    "slabs": dict(
        length=(130, 165),
        depth=(92, 120),
        street=(10, 14),
        avenue=(30, 38),
        lot=(45, 85),
        storeys=(5, 9),
        flat=(0.9, 1.0),
        trees=(35, 70),
        crown=(2.0, 4.2),
        cars=(0.3, 0.5),
    ),
    "rows": dict(
        length=(110, 170),
        depth=(58, 70),
        street=(9, 11),
        avenue=(14, 18),
        lot=(5, 6.5),
        storeys=(2, 2),
        flat=(0.0, 0.05),
        trees=(12, 30),
        crown=(1.6, 3.6),
        cars=(0.6, 0.9),
    ),
    "towers": dict(
        length=(120, 160),
        depth=(95, 125),
        street=(11, 15),
        avenue=(26, 32),
        lot=(24, 36),
        storeys=(10, 20),
        flat=(1.0, 1.0),
        trees=(25, 50),
        crown=(1.8, 3.4),
        cars=(0.25, 0.45),
    ),
}


def city_style(seed, city, alike=1):
    """What makes a city. Neighbouring numbers get another kind, pattern, roofs and angle; the rest is drawn at random.
    alike: cities come in groups of so many, which have the group's style with small changes."""
    if alike > 1:
        return sibling(city_style(seed, city // alike), random.Random(f"alike {seed} {city}"))
    rnd = random.Random(f"style {seed} {city}")
    lap, place = divmod(city, len(KINDS))
    kind, pattern, sets = list(KINDS)[place], PATTERNS[(city + lap) % len(PATTERNS)], list(ROOFS)
    style = SimpleNamespace(kind=kind, pattern=pattern)
    for key, (low, high) in KINDS[kind].items():
        setattr(
            style,
            key,
            (low, high) if key in ("lot", "storeys", "crown") else rnd.uniform(low, high),
        )
    style.second = rnd.choice(
        [k for k in KINDS if k not in (kind, "towers", "packed")]
    )  # what a few blocks are built of
    style.angle = (90 * 0.618034 * (city + 0.2) + rnd.uniform(-6, 6)) % 90
    style.every = rnd.randint(3, 5)  # each so-many-th street is an avenue
    style.bend = rnd.uniform(9, 15) if pattern == "organic" else rnd.uniform(0, 2)  # metres
    style.roofs = ROOFS[sets[(place + 3 * lap) % len(sets)]] * 3 + ROOFS[rnd.choice(sets)]
    style.leaf = rnd.choice([(58, 84, 44), (70, 92, 50), (50, 76, 50), (78, 90, 54)])
    style.lawn = rnd.choice([(98, 118, 70), (108, 122, 74), (88, 112, 68), (118, 122, 82)])
    style.soil = rnd.choice([(160, 140, 112), (150, 134, 112), (172, 150, 122), (142, 130, 114)])
    style.paving = rnd.choice([(160, 156, 150), (170, 162, 150), (150, 148, 146)])
    style.asphalt = (rnd.randint(96, 124),) * 3
    style.green = (
        rnd.uniform(0.1, 0.35) if kind == "packed" else rnd.uniform(0.35, 0.85)
    )  # share of yards that are lawn
    style.pools = rnd.choice([0, 0.03, 0.12]) if kind == "houses" else 0
    style.water = rnd.choice(["river", "river", "canal", "none"])
    return style


def sibling(style, rnd):
    """Another city of the same group: kind, pattern and most roofs stay, every measure moves by up to half its range, ground and trees differ."""
    for key, (low, high) in KINDS[style.kind].items():
        move = rnd.uniform(-0.5, 0.5) * (high - low)
        setattr(
            style,
            key,
            tuple(value + move for value in (low, high))
            if key in ("lot", "crown")
            else style.storeys
            if key == "storeys"
            else min(high, max(low, getattr(style, key) + move)),
        )
    other = city_style(rnd.getrandbits(32), 0)
    for key in ("leaf", "lawn", "soil", "paving", "asphalt", "water"):
        setattr(style, key, getattr(other, key))
    style.roofs = style.roofs + 2 * ROOFS[rnd.choice(list(ROOFS))]
    style.angle = rnd.uniform(0, 90)
    return style


def site_light(seed, city, site, strength=1.0):
    """How a site was photographed. All cities pass through the same ranges, so light tells nothing about the city: the first
    two sites lie near the two ends, later ones between them at 1/2, 1/4, 3/4 and so on. strength: of the differences."""
    common, own = random.Random(f"light {seed}"), random.Random(f"light {seed} {city} {site}")
    place = site if site < 2 else int(f"{site - 1:b}"[::-1], 2) / 2 ** (site - 1).bit_length()

    def spread(low, high):
        if common.random() < 0.5:
            low, high = high, low
        value = low + (high - low) * min(1, max(0, place + own.uniform(-0.15, 0.15)))
        value += (strength - 1) * (value - (low + high) / 2)
        return value if min(low, high) < 0 else max(0, value)

    sun, side = (
        math.radians(spread(110, 250)),
        own.uniform(0, math.tau),
    )  # from north: late morning to afternoon
    warm, tint, cold = spread(-0.04, 0.04), spread(-0.02, 0.02), spread(0, 0.03)
    return SimpleNamespace(
        sun=complex(math.sin(sun), -math.cos(sun)),  # unit vector along the ground towards the sun
        reach=spread(0.5, 1.0),  # metres of shadow for each metre of height
        shade=spread(0.39, 0.48),  # what is left of the light in a shadow
        exposure=spread(0.41, 0.51),
        contrast=spread(0.94, 1.12),
        vivid=spread(0.75, 0.95),
        cast=(1 + warm, 1 + tint, 1 - warm),
        haze=spread(0, 0.10),
        haze_colour=(0.68 - cold, 0.70, 0.72 + cold),
        dry=spread(0, 0.4),  # the season: 0 lush, 1 straw
        lean=spread(0.02, 0.13) * complex(math.cos(side), math.sin(side)),
    )  # of walls: the camera is never straight above


# Geometry. Points are complex numbers in metres, x right and y down, on a plane where the city's main direction is level.
# A block, a lot or a roof is a list of four corners, clockwise as seen; bend() in lay_out() carries them to the raster.


def cross(a, b):
    return a.real * b.imag - a.imag * b.real


def size(q):
    """Length along the first edge, depth across it."""
    return abs(q[1] - q[0] + q[2] - q[3]) / 2, abs(q[3] - q[0] + q[2] - q[1]) / 2


def at(q, u, v):
    return (q[0] * (1 - u) + q[1] * u) * (1 - v) + (q[3] * (1 - u) + q[2] * u) * v


def sub(q, u0, u1, v0, v1):
    """The part between two shares of the length and two of the depth; u0 > u1 with v0 > v1 turns it half round."""
    return [at(q, u0, v0), at(q, u1, v0), at(q, u1, v1), at(q, u0, v1)]


def turn(q):
    return q[1:] + q[:1]


def along(q):
    """The same corners with a long edge first."""
    length, depth = size(q)
    return q if length >= depth else turn(q)


def inset(q, widths):
    """Each edge moved inwards by its width; None where too little is left."""
    ahead = [(q[(i + 1) % 4] - q[i]) / (abs(q[(i + 1) % 4] - q[i]) or 1) for i in range(4)]
    moved = [q[i] + ahead[i] * 1j * widths[i] for i in range(4)]
    corners = []
    for i in range(4):
        turned = cross(ahead[i], ahead[i - 1])
        if abs(turned) < 0.2:
            return None
        corners.append(moved[i] + ahead[i] * cross(moved[i - 1] - moved[i], ahead[i - 1]) / turned)
    left = [((corners[(i + 1) % 4] - corners[i]) * ahead[i].conjugate()).real for i in range(4)]
    return corners if min(left) > 4 else None


def dense(points):
    """More points along the edges, so that long ones bend with the streets."""
    out = []
    for p, q in zip(points, points[1:] + points[:1]):
        n = max(1, int(abs(q - p) / 20))
        out += [p + (q - p) * i / n for i in range(n)]
    return out


def split(rnd, q, area, gap, skew):
    """Halve a block across its longer side again and again; yields the pieces and the widths of the gaps along their edges.
    gap(times) is the width of a gap in something `times` as large as a piece is to be, gap(None) that of the outer edge."""
    stack = [(q, [gap(None)] * 4)]
    while stack:
        q, widths = stack.pop()
        length, depth = size(q)
        if length * depth < area * rnd.uniform(0.9, 1.8):
            yield q, widths
            continue
        if length < depth:
            q, widths = turn(q), widths[1:] + widths[:1]
        cut, lean, between = (
            rnd.uniform(0.38, 0.62),
            rnd.uniform(-skew, skew),
            gap(length * depth / area),
        )
        top, low = q[0] + (q[1] - q[0]) * (cut + lean), q[3] + (q[2] - q[3]) * (cut - lean)
        stack.append(([q[0], top, low, q[3]], [widths[0], between, widths[2], widths[3]]))
        stack.append(([top, q[1], q[2], low], [widths[0], widths[1], widths[2], between]))


# Streets. Each pattern yields blocks that reach to the middle of their streets, and half the street's width for each edge.


def half_width(style, n):
    return (style.avenue if n % style.every == 0 else style.street) / 2


def grid_blocks(rnd, style, radius):
    def lines(step):
        x, n, out = -radius - rnd.uniform(0, step), rnd.randrange(style.every), []
        while x < radius:
            out.append((x, half_width(style, n)))
            x, n = x + step * rnd.uniform(0.92, 1.08), n + 1
        return list(zip(out, out[1:]))

    across, down = lines(style.length), lines(style.depth)
    for (x0, a), (x1, b) in across:
        for (y0, c), (y1, d) in down:
            yield [complex(x0, y0), complex(x1, y0), complex(x1, y1), complex(x0, y1)], [c, b, d, a]


def organic_blocks(rnd, style, radius):
    def gap(times):
        return (
            style.avenue
            if times is None or times > 40
            else style.street * (rnd.uniform(0.9, 1.2) if times > 5 else 0.8)
        ) / 2

    centre = complex(rnd.uniform(-60, 60), rnd.uniform(-60, 60))
    yield from split(
        rnd,
        [centre + 1.1 * radius * c for c in (-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j)],
        style.length * style.depth * 0.75,
        gap,
        0.08,
    )


def radial_rings(rnd, style, radius):
    """Inner radius and number of blocks of each ring; a ring has as many as the one inside it, or twice that."""
    r, n, rings = style.depth * 0.6, 8, []
    while r < 2 * radius:
        while math.tau * r / n > 1.3 * style.length:
            n *= 2
        rings.append((r, n))
        r += style.depth * rnd.uniform(0.92, 1.08)
    return rings


def radial_blocks(style, rings, centre):
    for k, ((r0, n), (r1, _)) in enumerate(zip(rings, rings[1:])):
        for i in range(n):
            near, far = [half_width(style, 0 if j * 8 % n == 0 else 1) for j in (i, i + 1)]
            a, b = [np.exp(1j * math.tau * j / n) for j in (i, i + 1)]
            yield (
                [complex(centre + z) for z in (r0 * b, r0 * a, r1 * a, r1 * b)],
                [half_width(style, k), near, half_width(style, k + 1), far],
            )


def round_off(z, rings, centre):
    """Carry the straight sides of the rings to circles."""
    away, out = z - centre, z
    for n in sorted({n for _, n in rings}):
        half = math.pi / n
        moved = away * np.cos(np.angle(away) % (2 * half) - half) / math.cos(half)
        out = np.where(
            np.abs(moved) > min(r for r, m in rings if m == n) - 3, centre + moved, out
        )  # 3 m: still on the street
    return out


# What stands on a block. A scene collects what is drawn: ground from first to last, then all that has a height.


def vary(rnd, colour, amount):
    light = 1 + rnd.uniform(-amount, amount)
    return tuple(c * light * (1 + rnd.uniform(-amount, amount) / 4) for c in colour)


class Scene:
    def __init__(self, rnd, style, lawn):
        self.rnd, self.style, self.lawn = rnd, style, lawn
        self.ground = []  # (points, colour, roughness)
        self.solids = []  # (corners, height of the roof, its height above what it stands on, form, colour)
        self.trees = []  # (centre, radius, height)

    def paint(self, points, colour, rough, amount=0.05):
        self.ground.append((points, vary(self.rnd, colour, amount), rough))

    def strip(self, a, b, wide, colour=(205, 203, 194), rough=20):
        """A bar from a to b: a marking, a path, a bridge."""
        side = (b - a) / (abs(b - a) or 1) * 0.5j * wide
        self.paint([a - side, b - side, b + side, a + side], colour, rough)

    def yard(self, q, amount=0.1):
        """A plot of open ground: lawn, soil or paving."""
        draw, style = self.rnd.random(), self.style
        bare = (style.soil, 90) if draw < 0.6 + 0.4 * style.green else (style.paving, 50)
        self.paint(q, *((self.lawn, 110) if draw < style.green else bare), amount)

    def build(self, q, height, form, colour, above=None):
        self.solids.append((q, height, height if above is None else above, form, colour))

    def roof(self, q, storeys, flat=None, colour=None, hip=False):
        """A building: flat, with what stands on flat roofs, or pitched with the ridge along the first edge."""
        rnd, style, (length, depth), height = self.rnd, self.style, size(q), 3.1 * storeys + 1
        colour = vary(rnd, colour or rnd.choice(style.roofs), 0.08)
        if not (rnd.random() < style.flat if flat is None else flat):
            return self.build(q, height + 1.5, "hip" if hip else "gable", colour)
        self.build(q, height, "flat", colour)
        for _ in range(min(9, int(length * depth / 110 * rnd.random() + 0.4))):
            u, v, w, d = (
                rnd.uniform(0.1, 0.8),
                rnd.uniform(0.15, 0.75),
                rnd.uniform(1.2, 3.5) / length,
                rnd.uniform(1.2, 3) / depth,
            )
            if u + w < 0.95 and v + d < 0.92:
                tone = vary(rnd, rnd.choice([(190, 190, 188), (120, 120, 122), colour]), 0.1)
                self.build(
                    sub(q, u, u + w, v, v + d), height + 3, "plain", tone, above=rnd.uniform(1, 2.5)
                )

    def tree(self, z, scale=1.0):
        r = self.rnd.uniform(*self.style.crown) * scale
        self.trees.append((z, r, r * self.rnd.uniform(1.5, 2.3)))

    def plant(self, q, a_hectare, scale=1.0):
        length, depth = size(q)
        for _ in range(int(length * depth * a_hectare / 1e4 + self.rnd.random())):
            self.tree(at(q, self.rnd.random(), self.rnd.random()), scale)

    def cars(self, a, b, share, abreast=False, pitch=5.6):
        """Cars along a line, nose to tail or side by side."""
        rnd, ahead = self.rnd, (b - a) / (abs(b - a) or 1)
        nose, pitch = (ahead * 1j, 2.7) if abreast else (ahead, pitch)
        for i in range(int(abs(b - a) / pitch)):
            if rnd.random() < share:
                z, long, wide = (
                    a + ahead * pitch * (i + rnd.uniform(0.4, 0.6)),
                    nose * rnd.uniform(2.0, 2.4),
                    nose * rnd.uniform(0.85, 0.95) * 1j,
                )
                self.build(
                    [z - long - wide, z + long - wide, z + long + wide, z - long + wide],
                    1.5,
                    "car",
                    rnd.choice(CARS),
                )


def fill_houses(scene, block):
    """Two rows of detached houses back to back, each on a lot of its own with a drive."""
    rnd, style, block = scene.rnd, scene.style, along(block)
    length, depth = size(block)
    lots = max(1, round(length / rnd.uniform(*KINDS["houses"]["lot"])))
    for row in [sub(block, 0, 1, 0, 0.5), sub(block, 1, 0, 1, 0.5)] if depth > 36 else [block]:
        for i in range(lots):
            lot = sub(row, i / lots, (i + 1) / lots, 0, 1)
            if rnd.random() < 0.5:
                lot = [lot[1], lot[0], lot[3], lot[2]]  # mirrored: the drive on the other side
            wide, deep = size(lot)
            front, back = rnd.uniform(4.5, 7.5) / deep, rnd.uniform(9, 13) / deep
            left, right = rnd.uniform(0.06, 0.12), rnd.uniform(0.72, 0.93)
            scene.yard(lot)
            scene.yard(sub(lot, 0, 1, 0, front))
            scene.paint(
                sub(lot, 0.78, 0.96, 0, front + back * rnd.uniform(0.3, 1.2)), style.paving, 40, 0.1
            )
            scene.cars(at(lot, 0.87, 0.3 * front), at(lot, 0.87, front), 0.5)
            look = dict(
                storeys=rnd.choice([1, 1, 2]),
                flat=rnd.random() < style.flat,
                colour=vary(rnd, rnd.choice(style.roofs), 0.1),
            )
            scene.roof(
                along(sub(lot, left, right, front, front + back)), hip=rnd.random() < 0.5, **look
            )
            if rnd.random() < 0.6:  # a wing with a ridge of its own
                a, ends = (
                    rnd.choice([left + 0.03, right - 0.4]),
                    rnd.choice([(-2.5 / deep, back * 0.5), (back * 0.5, back + 3.5 / deep)]),
                )
                scene.roof(turn(sub(lot, a, a + 0.34, front + ends[0], front + ends[1])), **look)
            if rnd.random() < 0.35:  # a shed
                scene.roof(sub(lot, 0.66, 0.66 + 4.5 / wide, 0.8, 0.8 + 5 / deep), 0.6, True)
            if rnd.random() < style.pools:
                scene.paint(
                    sub(lot, 0.2, 0.2 + 7 / wide, 0.72, 0.72 + 4 / deep), (96, 170, 186), 10
                )
            scene.plant(sub(lot, 0, 1, min(0.9, front + back), 1), style.trees * 2.2, 0.9)
            scene.plant(sub(lot, 0, 0.7, 0, front), style.trees * 0.9)


def fill_rows(scene, block):
    """Terraces along the two long sides, narrow gardens behind them."""
    rnd, block = scene.rnd, along(block)
    length, depth = size(block)
    houses = max(2, round(length / rnd.uniform(*KINDS["rows"]["lot"])))
    for row in [sub(block, 0, 1, 0, 0.5), sub(block, 1, 0, 1, 0.5)] if depth > 26 else [block]:
        deep, each = size(row)[1], rnd.randint(6, 14)
        front, back = 3 / deep, (3 + rnd.uniform(8, 9.5)) / deep
        for i in range(houses):
            if i % each == 0:
                colour = rnd.choice(scene.style.roofs)
                if i and rnd.random() < 0.4:
                    continue  # a gap between two terraces
            lot = sub(row, i / houses, (i + 1) / houses, 0, 1)
            scene.yard(lot, 0.12)
            scene.roof(sub(lot, 0, 1, front, back), 2, False, vary(rnd, colour, 0.04))
            if rnd.random() < 0.6:
                scene.roof(turn(sub(lot, 0.05, 0.55, back, back + rnd.uniform(2.5, 5) / deep)), 1.2)
            if rnd.random() < 0.25:
                scene.roof(sub(lot, 0.2, 0.75, 0.9, 0.97), 0.5, True, (150, 146, 140))
        scene.plant(sub(row, 0, 1, min(0.9, back + 0.1), 1), scene.style.trees * 1.6)


def fill_perimeter(scene, block):
    """Tall houses wall to wall around courtyards, with wings along the walls between them."""
    rnd, style, block = scene.rnd, scene.style, along(block)
    length, depth = size(block)
    thick, storeys = rnd.uniform(11, 14), rnd.uniform(*KINDS["perimeter"]["storeys"])
    du, dv = (thick / length, thick / depth) if depth > 2.6 * thick else (0.5, 0.5)
    scene.paint(block, style.paving, 50)
    for i in range(n := max(1, round(length / 18))):
        court = sub(
            sub(block, du, 1 - du, dv, 1 - dv),
            i / n,
            (i + 1) / n,
            *rnd.choice([(0, 1), (0, 0.5), (0.5, 1)]),
        )
        scene.yard(court)
        scene.plant(court, style.trees * rnd.choice([0, 3, 9]))
    sides = [sub(block, 0, 1, 0, dv), sub(block, 1, 0, 1, 1 - dv)]
    if dv < 0.5:
        sides += [
            turn(turn(turn(sub(block, 0, du, dv, 1 - dv)))),
            turn(sub(block, 1 - du, 1, dv, 1 - dv)),
        ]
    for k, side in enumerate(sides):
        n = max(1, round(size(side)[0] / rnd.uniform(*KINDS["perimeter"]["lot"])))
        for i in range(n):
            lot, tall, colour = (
                sub(side, i / n, (i + 1) / n, 0, 1),
                storeys + rnd.choice([-1, 0, 0, 0, 1]),
                rnd.choice(style.roofs),
            )
            if rnd.random() > 0.03:
                scene.roof(lot, tall, colour=colour)
            if k < 2 and 0 < i < n - 1 and rnd.random() < 0.6:
                a, end = rnd.choice([0, 0.5]), 1 + rnd.uniform(0.5, 0.9) * (0.5 - dv) / dv
                scene.roof(
                    turn(sub(lot, a, a + 0.5, 1, end)), rnd.choice([1, tall - 1]), colour=colour
                )


def fill_packed(scene, block):
    """Small plots, built over almost entirely."""
    rnd, style = scene.rnd, scene.style

    def gap(times):
        return (
            0.2
            if times is None
            else rnd.choice([0.1, 0.1, 0.3, 0.9])
            if times < 4
            else rnd.uniform(0.5, 1.3)
        )

    scene.paint(block, style.soil, 90)
    for plot, gaps in split(rnd, block, rnd.uniform(80, 130), gap, 0.04):
        q = inset(plot, gaps)
        if q is None:
            continue
        if rnd.random() < 0.16:
            scene.yard(q)
            scene.plant(q, style.trees * 9)
            continue
        if rnd.random() < 0.3:  # with a yard
            scene.paint(q, style.paving, 60, 0.1)
            q = sub(q, 0, rnd.uniform(0.55, 0.75), 0, 1)
        scene.roof(along(q), rnd.choice([1, 1, 1, 2, 2, 3]))


def fill_slabs(scene, block):
    """Long slabs on a common lawn, with parking, paths and trees between them."""
    rnd, style, block = scene.rnd, scene.style, along(block)
    scene.paint(dense(block), scene.lawn if rnd.random() < style.green + 0.3 else style.soil, 110)
    block = turn(block) if rnd.random() < 0.5 else block
    rows, wide, storeys = (
        max(1, int(size(block)[1] / rnd.uniform(36, 48))),
        rnd.uniform(12, 15),
        rnd.uniform(*KINDS["slabs"]["storeys"]),
    )
    colour = [
        0.6 * c + 54 for c in rnd.choice(style.roofs)
    ]  # felt more than tiles: such roofs are greyer
    for i in range(rows):
        row = sub(block, 0.03, 0.97, i / rows, (i + 1) / rows)
        length, tall = size(row)
        scene.paint(
            dense(sub(row, 0, 1, 0.78, 0.78 + 4 / tall)), [c + 14 for c in style.asphalt], 30
        )
        scene.cars(
            at(row, 0.05, 0.78 + 5.5 / tall), at(row, 0.95, 0.78 + 5.5 / tall), 0.45, abreast=True
        )
        for j in range(n := max(1, round(length / rnd.uniform(62, 95)))):
            cell, back = sub(row, j / n, (j + 1) / n, 0, 1), 0.22 + wide / tall
            if rnd.random() < 0.12:  # a kindergarten and its playground instead
                scene.paint(sub(cell, 0.2, 0.8, 0.15, 0.6), style.soil, 80)
                scene.roof(sub(cell, 0.25, 0.6, 0.2, 0.5), 2, True)
                continue
            for u in (0.1, 0.3, 0.5, 0.7, 0.9):  # paths to the doors
                scene.strip(at(cell, u, back), at(cell, u, 0.8), 1.8, style.paving, 40)
            a = rnd.uniform(0.03, 0.12)
            slab = sub(cell, a, 1 - a, 0.22, back)
            scene.roof(slab, storeys, True, colour)
            for u in (0.12, 0.37, 0.62, 0.87):  # lift houses
                scene.build(
                    sub(slab, u - 0.02, u + 0.02, 0.35, 0.65),
                    3.1 * storeys + 4,
                    "plain",
                    vary(rnd, colour, 0.1),
                    above=2.5,
                )
        scene.plant(sub(row, 0, 1, 0.55, 0.76), style.trees * 2.2)
        scene.plant(sub(row, 0, 1, 0, 0.2), style.trees * 1.6)


def fill_towers(scene, block):
    """Point blocks on podiums or in gardens, with car parks between them."""
    rnd, style, block = scene.rnd, scene.style, along(block)
    length, depth = size(block)
    scene.paint(dense(block), style.paving, 50)
    colour, podium, storeys = (
        rnd.choice(style.roofs),
        rnd.random() < 0.4,
        rnd.uniform(*KINDS["towers"]["storeys"]),
    )
    nu, nv = max(1, round(length / rnd.uniform(46, 62))), max(1, round(depth / rnd.uniform(44, 58)))
    for cell in [
        sub(block, i / nu, (i + 1) / nu, j / nv, (j + 1) / nv) for i in range(nu) for j in range(nv)
    ]:
        (wide, deep), draw = size(cell), rnd.random()
        if draw < 0.15:
            park_cars(scene, sub(cell, 0.06, 0.94, 0.06, 0.94), style.asphalt)
            continue
        if podium:
            scene.roof(sub(cell, 0.06, 0.94, 0.06, 0.94), 3, True)
        else:
            a, b = rnd.uniform(0.35, 0.65), rnd.uniform(0.35, 0.65)
            for u0, u1, v0, v1 in ((0, a, 0, b), (a, 1, 0, b), (0, a, b, 1), (a, 1, b, 1)):
                bed = inset(sub(cell, u0, u1, v0, v1), [1.6] * 4)
                if bed and rnd.random() < 0.4 + 0.5 * style.green:
                    scene.paint(bed, scene.lawn, 110)
                    scene.plant(bed, style.trees * rnd.choice([1, 3, 6]))
        if draw < 0.27:  # a playing court or a pool
            scene.paint(
                sub(cell, 0.3, 0.7, 0.35, 0.65), rnd.choice([(120, 108, 98), (96, 160, 178)]), 20
            )
            continue
        w, d, tall = (
            rnd.uniform(20, 30) / wide,
            rnd.uniform(18, 26) / deep,
            storeys * rnd.uniform(0.75, 1.2),
        )
        u, v = (1 - w) * rnd.uniform(0.3, 0.7), (1 - d) * rnd.uniform(0.3, 0.7)
        if rnd.random() < 0.6:  # cross-shaped: flats with light from three sides
            scene.roof(
                sub(cell, u + w * 0.28, u + w * 0.72, v - 0.22 * d, v + 1.22 * d),
                tall,
                True,
                colour,
            )
        tower = sub(cell, u, u + w, v, v + d)
        scene.roof(tower, tall, True, colour)
        scene.build(
            sub(tower, 0.35, 0.65, 0.35, 0.65),
            3.1 * tall + 6,
            "flat",
            vary(rnd, colour, 0.1),
            above=5,
        )


def park_cars(scene, q, colour):
    """A car park: rows of bays, more or less full."""
    (length, depth), share = size(q), scene.rnd.uniform(0.2, 0.85)
    scene.paint(q, colour, 40)
    for k in range(rows := max(1, int(depth / 8.5))):
        v = (k + 0.5) / rows
        for s in range(int(length / 2.7) + 1):
            scene.strip(
                at(q, s * 2.7 / length, v - 2.4 / depth),
                at(q, s * 2.7 / length, v + 2.4 / depth),
                0.15,
            )
        scene.cars(at(q, 0, v), at(q, 1, v), share, abreast=True)


def fill_works(scene, block):
    """Halls or shops, and their car park."""
    rnd, style, block = scene.rnd, scene.style, along(block)
    scene.paint(block, style.asphalt, 35)
    cut, n, colour = (
        rnd.uniform(0.45, 0.7),
        rnd.randint(1, 3),
        rnd.choice(ROOFS["white"] + ROOFS["felt"] * 2 + ROOFS["painted"][:1]),
    )
    hall, lot = inset(sub(block, 0, cut, 0, 1), [4] * 4), inset(sub(block, cut, 1, 0, 1), [4] * 4)
    for k in range(n if hall else 0):
        scene.roof(
            sub(hall, k / n, (k + 0.96) / n, 0, rnd.uniform(0.75, 1)),
            rnd.uniform(2, 3),
            True,
            colour,
        )
    if lot:
        park_cars(scene, lot, style.asphalt)


def fill_park(scene, block):
    """Lawn with groups of trees, and paths or a sports field."""
    rnd, block = scene.rnd, along(block)
    scene.paint(dense(block), scene.lawn, 120)
    length, depth = size(block)
    if rnd.random() < 0.35 and depth > 45 and length > 66:
        u, v = 30 / length, 20 / depth
        pitch = sub(block, 0.5 - u, 0.5 + u, 0.5 - v, 0.5 + v)
        for k in range(10):  # as the mower went
            scene.paint(
                sub(pitch, k / 10, (k + 1) / 10, 0, 1),
                [c * (1.06 if k % 2 else 0.98) for c in (92, 128, 72)],
                50,
                0.01,
            )
        for a, b, c, d in (
            (0, 0, 1, 0),
            (0, 1, 1, 1),
            (0, 0, 0, 1),
            (1, 0, 1, 1),
            (0.5, 0, 0.5, 1),
        ):
            scene.strip(at(pitch, a, b), at(pitch, c, d), 0.5)
        groups = [(0, 1, 0, 0.16), (0, 1, 0.84, 1)]
    else:
        for a, b, c, d in ((0, 0, 1, 1), (1, 0, 0, 1), (0.5, 0, 0.5, 1)):
            scene.strip(at(block, a, b), at(block, c, d), 2.6, scene.style.soil, 50)
        groups = [
            (u, u + 0.28, v, v + 0.38)
            for u, v in [(rnd.uniform(0, 0.7), rnd.uniform(0, 0.6)) for _ in range(5)]
        ]
    for group in groups:
        scene.plant(sub(block, *group), 130, 1.15)


FILL = dict(
    houses=fill_houses,
    perimeter=fill_perimeter,
    packed=fill_packed,
    slabs=fill_slabs,
    rows=fill_rows,
    towers=fill_towers,
)


def line_streets(scene, raw, widths, block):
    """Parked cars and trees along a block, markings and traffic on the streets around it."""
    rnd, style = scene.rnd, scene.style
    for i in range(4):
        a, b, p, q, half = raw[i], raw[(i + 1) % 4], block[i], block[(i + 1) % 4], widths[i]
        ahead = (b - a) / (abs(b - a) or 1)
        inwards = ahead * 1j
        scene.cars(p - 1.3 * inwards, q - 1.3 * inwards, style.cars)
        if style.trees > 12:
            pitch = rnd.uniform(9, 14)
            for k in range(int(abs(q - p) / pitch)):
                if rnd.random() < min(0.8, style.trees / 60):
                    scene.tree(p + ahead * pitch * (k + 0.5) + inwards, 0.85)
        if half > 8 and abs(b - a) > 40:  # an avenue
            for k in range(int(abs(q - p) / 12)):
                z = p - inwards * half * 0.5 + ahead * 12 * k
                scene.strip(z, z + ahead * 4, 0.2)
            scene.cars(
                a + inwards * half * 0.25, b + inwards * half * 0.25, 0.35 * style.cars, pitch=12
            )
        if i in (0, 3):  # what is in the middle of a street is drawn from one of its sides only
            z, free = (
                a + ahead * (widths[i - 1] + 6),
                abs(b - a) - widths[i - 1] - widths[(i + 1) % 4] - 12,
            )  # between crossings
            step, dash, wide = (9, 4, 0.24) if half < 8 else (20, 20, 0.6)
            for k in range(int(free / step) if half > 4 else 0):
                scene.strip(z + ahead * step * k, z + ahead * (step * k + dash), wide)
            for k in range(int(half * 2 / 1.3) - 2 if half > 8 else 0):  # a zebra crossing
                z = a + ahead * (widths[i - 1] + 2.2) + inwards * (k * 1.3 - half + 1.8)
                scene.strip(z, z + ahead * 3, 0.55)


def lay_out(rnd, style, light, half):
    """Everything on a raster that reaches `half` metres from its middle, and the function that carries it to the raster."""
    scene = Scene(
        rnd,
        style,
        [c * (1 - light.dry) + d * light.dry for c, d in zip(style.lawn, (158, 146, 108))],
    )
    radius, rings, centre = (
        half * 1.5 + 60,
        None,
        complex(rnd.uniform(-0.7, 0.7), rnd.uniform(-0.7, 0.7)) * half,
    )
    if style.pattern == "radial":
        rings = radial_rings(rnd, style, radius)
        blocks, middle = radial_blocks(style, rings, centre), rings[0][0] - style.avenue / 2
        for share, colour in ((1, style.paving), (0.85, scene.lawn), (0.3, style.paving)):
            scene.paint(
                list(centre + share * middle * np.exp(1j * np.arange(0, math.tau, 0.1))), colour, 80
            )
        for _ in range(40):
            scene.tree(
                centre + middle * rnd.uniform(0.3, 0.8) * np.exp(1j * rnd.uniform(0, math.tau))
            )
    else:
        blocks = dict(grid=grid_blocks, organic=organic_blocks)[style.pattern](rnd, style, radius)
    turned = np.exp(1j * math.radians(style.angle + rnd.uniform(-3, 3)))
    waves = [
        (
            rnd.uniform(0, math.tau),
            math.tau / rnd.uniform(350, 800),
            np.exp(1j * rnd.uniform(0, math.tau)),
        )
        for _ in range(3)
    ]

    def bend(z):
        z = round_off(z, rings, centre) if rings else z
        return turned * (
            z
            + sum(
                style.bend * 1j * way * np.sin(start + k * (z * way.conjugate()).real)
                for start, k, way in waves
            )
        )

    river = lay_river(rnd, style, half)
    streets = []
    for raw, widths in blocks:
        middle = sum(raw) / 4
        where, reach = bend(np.array([middle]))[0], max(abs(c - middle) for c in raw) + 50
        outer = inset(raw, widths) if max(abs(where.real), abs(where.imag)) < half + reach else None
        block = outer and inset(outer, [1 if style.kind == "packed" else rnd.uniform(2, 3)] * 4)
        if not block:
            continue
        scene.paint(dense(outer), style.paving, 45)  # the pavement
        scene.yard(dense(block))
        draw = rnd.random()
        (
            fill_park
            if draw < 0.05
            else fill_works
            if draw < 0.08
            else FILL[style.second if draw < 0.13 else style.kind]
        )(scene, block)
        line_streets(scene, raw, widths, outer)
        streets += [(raw[i], raw[(i + 1) % 4], widths[i]) for i in (0, 3)]
    if river:
        flood(scene, *river, streets)
    return scene, bend


def lay_river(rnd, style, half):
    """Two functions: metres from the shore (negative in the water), and the outline of the water and so many metres around it."""
    if style.water == "none" or rnd.random() < 0.35:
        return None
    wide, sway = (
        (rnd.uniform(7, 10), 0)
        if style.water == "canal"
        else (rnd.uniform(14, 30), rnd.uniform(15, 45))
    )
    middle, start, wave = (
        rnd.uniform(-0.6, 0.6) * half,
        rnd.uniform(0, math.tau),
        rnd.uniform(80, 140),
    )

    def course(x):
        return middle + sway * np.sin(x / wave + start) + sway * 0.3 * np.sin(x / wave * 2.7)

    def outline(more):
        x = np.linspace(-2 * half - 200, 2 * half + 200, 160)
        return list(x + 1j * (course(x) - wide - more)) + list(
            (x + 1j * (course(x) + wide + more))[::-1]
        )

    return (lambda z: np.abs(z.imag - course(z.real)) - wide), outline


def flood(scene, shore, outline, streets):
    """Draw the water over the ground, take away what would stand in it, and lead streets across."""
    for more, colour, rough in (
        (9, scene.lawn, 110),
        (1.2, scene.style.paving, 40),
        (0, (66, 84, 84), 14),
    ):
        scene.paint(outline(more), colour, rough)
    for a, b, half in streets:
        far = shore(a + (b - a) * np.linspace(0, 1, 9))
        if far[0] > 3 and far[-1] > 3 and far.min() < 0 and (half > 6 or scene.rnd.random() < 0.35):
            scene.strip(a, b, 1.6 * half, (176, 174, 170), 30)
            scene.strip(a, b, 1.6 * half - 2.4, scene.style.asphalt, 30)
    feet, shares = np.reshape([s[0] for s in scene.solids], (-1, 4)).T, (0, 0.5, 1)
    dry = np.min([shore(at(feet, u, v)) for u in shares for v in shares], axis=0) > 6
    scene.solids = [s for s, keep in zip(scene.solids, dry) if keep]
    scene.trees = [t for t in scene.trees if shore(t[0]) > 4]


# Drawing.


def cast_shadow(corners, away):
    """Outlines (n, 2k) of what convex outlines (n, k) sweep over when they are moved by `away`."""
    edge = np.roll(corners, -1, axis=1) - corners
    area = (corners.conj() * np.roll(corners, -1, axis=1)).imag.sum(axis=1, keepdims=True)
    leading = (
        (edge * -1j * np.sign(area)).conj() * away[:, None]
    ).real > 0  # edges that face the way it moves
    before, after = (corners + f * away[:, None] for f in (np.roll(leading, 1, axis=1), leading))
    return np.stack([before, after], axis=2).reshape(len(corners), 2 * corners.shape[1])


def facets(corners, form, colour, sun):
    """What is seen of each building from above: outlines (n, 4, 4), colours (n, 4, 3) and how many of the four are used."""
    c0, c1, c2, c3 = corners.T
    run = np.where(
        form == "hip", np.minimum(0.45, np.abs(c3 - c0) / 2 / np.maximum(np.abs(c1 - c0), 0.1)), 0
    )
    a, b = at((c0, c1, c2, c3), run, 0.5), at((c0, c1, c2, c3), 1 - run, 0.5)  # the ridge
    outline = np.stack(
        [
            np.stack(f, axis=1)
            for f in ((c0, c1, b, a), (c2, c3, a, b), (c1, c2, b, b), (c3, c0, a, a))
        ],
        axis=1,
    )
    down = np.stack(
        [c0 + c1 - c2 - c3, c2 + c3 - c0 - c1, c1 + c2 - c0 - c3, c0 + c3 - c1 - c2], axis=1
    )
    lit = 1 + 0.24 * (down / np.maximum(np.abs(down), 1e-9) * np.conj(sun)).real
    flat, car = form == "flat", form == "car"
    level = flat | car | (form == "plain")
    du, dv = (np.minimum(0.2, 0.45 / np.maximum(np.abs(e), 0.1)) for e in (c1 - c0, c3 - c0))
    inner = sub(
        (c0, c1, c2, c3),
        *(np.where(car, x, y) for x, y in ((0.28, du), (0.45, 1 - du), (0.1, dv), (0.9, 1 - dv))),
    )
    outline[level, 0], outline[level, 1] = (
        corners[level],
        np.stack(inner, axis=1)[level],
    )  # inside the parapet; the windscreen
    lit[level, 0], lit[flat, 0], lit[level, 1], lit[car, 1] = 1, 1.16, 1, 0.4
    used = np.select([form == "hip", form == "plain"], [4, 1], 2)
    return outline, np.clip(colour[:, None, :] * lit[:, :, None], 0, 255), used


def crown(rng, radius, colour, sun):
    """A tree from above as a stamp and its mask: lumps of leaves, lit from the sun's side."""
    n, lumps = int(radius * 2.4) + 3, max(7, int(radius * 1.2))
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    height = np.zeros((n, n))
    for k in range(lumps):
        r = radius * rng.uniform(0.28, 0.48)
        z = (radius - r) * math.sqrt(k / lumps) * np.exp(1j * (k * 2.4 + rng.uniform(0, 0.6)))
        d2 = (x - z.real) ** 2 + (y - z.imag) ** 2
        height = np.maximum(
            height,
            np.where(d2 < r * r, np.sqrt(np.maximum(r * r - d2, 0)) + 0.7 * (radius - abs(z)), 0),
        )
    gy, gx = np.gradient(height)
    slope = -(gx * sun.real + gy * sun.imag) / np.sqrt(1 + gx**2 + gy**2)
    light = np.clip(1.0 + 0.42 * slope + rng.normal(0, 0.07, (n, n)), 0.35, 1.6)
    hue = np.array(colour) * rng.uniform(0.8, 1.2) + rng.uniform(-9, 9) * np.array([1, 0.2, 0.3])
    stamp = np.dstack([np.clip(hue * light[:, :, None], 0, 255), np.full((n, n), 60)]).astype(
        np.uint8
    )
    return Image.frombytes(CANVAS, (n, n), stamp.tobytes()), Image.fromarray(
        (height > 0).astype(np.uint8) * 255
    )


def flat_lists(points, top):
    """Complex outlines as lists x, y, x, y ... on a canvas whose first row is `top`."""
    return np.ascontiguousarray(points - 1j * top).view(float).tolist()


def with_fourth(colour, rough):
    """Colours with the roughness as a fourth channel."""
    return np.concatenate(
        [colour, np.broadcast_to(rough, colour.shape[:-1] + (1,))], axis=-1
    ).astype(int)


def draw(scene, bend, light, px, rng):
    """The scene band by band: its first row, colours and roughness (rows, px, 4), and shadow (rows, px)."""
    scale, middle = FINE / METRES, (1 + 1j) * px * FINE / 2

    def on_canvas(outlines):
        points = bend(np.array([p for o in outlines for p in o], complex)) * scale + middle
        return np.split(points, np.cumsum([len(o) for o in outlines])[:-1])

    ground = on_canvas([g[0] for g in scene.ground])
    spans = np.array([(g.imag.min(), g.imag.max()) for g in ground])
    inks = [tuple(int(min(255, c)) for c in g[1]) + (g[2],) for g in scene.ground]

    top, above = (np.array([s[k] for s in scene.solids], float) for k in (1, 2))
    form, colour = (
        np.array([s[3] for s in scene.solids], str),
        np.array([s[4] for s in scene.solids], float).reshape(-1, 3),
    )
    feet = (
        np.reshape(on_canvas([s[0] for s in scene.solids]), (-1, 4))
        + ((top - above) * light.lean * scale)[:, None]
    )
    leaning = above * light.lean * scale
    walls, shadow = (
        cast_shadow(feet, leaning),
        cast_shadow(feet, -light.sun * light.reach * scale * above),
    )
    outline, colour, used = facets(feet + leaning[:, None], form, colour, light.sun)
    wall_colour = with_fourth(np.clip(colour[:, 0] * 0.5 + 45, 0, 255), 40)
    colour = with_fourth(colour, np.where(form == "flat", 64, 40)[:, None, None])

    centre, radius, tall = (
        np.array([t[k] for t in scene.trees], kind)
        for k, kind in enumerate((complex, float, float))
    )
    centre = bend(centre) * scale + middle
    sizes = np.linspace(1, max(radius.max(initial=2), 2), 14)
    leaf = [
        c * (1 - 0.35 * light.dry) + d * 0.35 * light.dry
        for c, d in zip(scene.style.leaf, (140, 120, 74))
    ]
    stamps = [[crown(rng, r * scale, leaf, light.sun) for _ in range(8)] for r in sizes]
    stamp_of = [
        stamps[i][j]
        for i, j in zip(
            np.abs(sizes - radius[:, None]).argmin(axis=1), rng.integers(0, 8, len(radius))
        )
    ]
    crowns = centre[:, None] + radius[:, None] * scale * 0.92 * np.exp(
        1j * np.arange(10) * math.tau / 10
    )
    tree_shadow = cast_shadow(crowns, -light.sun * light.reach * scale * tall * 0.75)

    # From low to high in steps of 3 m: all the shadows of a step, then its roofs and crowns, which clear away what lower
    # things have thrown on them. So towers shade the roofs below, and neighbours of one height leave each other alone.
    steps, tree_steps = (top / 3).astype(int), (tall / 3).astype(int)
    for first in range(0, px, BAND):
        rows = min(BAND, px - first)
        y0, y1 = first * FINE, (first + rows) * FINE
        image = Image.new(CANVAS, (px * FINE, rows * FINE), scene.style.asphalt + (40,))
        mask = Image.new("L", image.size, 0)
        pen, dark = ImageDraw.Draw(image), ImageDraw.Draw(mask)
        for i in np.flatnonzero((spans[:, 1] >= y0) & (spans[:, 0] < y1)):
            pen.polygon(flat_lists(ground[i], y0), fill=inks[i])
        here, trees_here = (
            (p.imag.max(axis=1) >= y0) & (p.imag.min(axis=1) < y1)
            for p in (np.hstack([shadow, walls]), tree_shadow)
        )
        for step in sorted(set(steps[here]) | set(tree_steps[trees_here])):
            some, woods = (
                np.flatnonzero(here & (steps == step)),
                np.flatnonzero(trees_here & (tree_steps == step)),
            )
            for points in flat_lists(shadow[some], y0) + flat_lists(tree_shadow[woods], y0):
                dark.polygon(points, fill=255)
            for points, ink in zip(flat_lists(walls[some], y0), wall_colour[some].tolist()):
                dark.polygon(points, fill=0)
                pen.polygon(points, fill=tuple(ink))
            for points, tones, n in zip(
                flat_lists(outline[some].reshape(-1, 16), y0),
                colour[some].tolist(),
                used[some].tolist(),
            ):
                for k in range(n):
                    pen.polygon(points[8 * k : 8 * k + 8], fill=tuple(tones[k]))
            for points in flat_lists(crowns[woods], y0):
                dark.polygon(points, fill=0)
            for i in woods:
                stamp, shape = stamp_of[i]
                image.paste(
                    stamp,
                    (
                        int(centre[i].real - stamp.width / 2),
                        int(centre[i].imag - y0 - stamp.height / 2),
                    ),
                    shape,
                )
        yield (
            first,
            *(np.asarray(layer.resize((px, rows), Image.BILINEAR)) for layer in (image, mask)),
        )


def smooth(rng, px, cell, spread):
    """Smooth noise with features of `cell` pixels: a function that gives some rows of it, the same whatever the bands."""
    n = px // cell + 4
    knots = Image.fromarray(rng.normal(0, spread, (n, n)).astype(np.float32))

    def some(first, rows):
        box = (1, 1 + first / cell, 1 + px / cell, 1 + (first + rows) / cell)
        return np.asarray(knots.resize((px, rows), Image.BICUBIC, box=box))

    return some


def tone_curves(light, mean):
    """Three tables of 256 bytes: exposure, contrast, colour cast and haze."""
    x, curves = np.arange(256) / 255, []
    for cast, haze, m in zip(light.cast, light.haze_colour, mean):
        y = (
            x * 0.42 / (0.5 * m + 0.5 * np.mean(mean)) * cast
        )  # exposure, and half of the white balance, are automatic
        y = light.exposure * (1 + (y / 0.42 - 1) * light.contrast)
        y = y * (1 - light.haze) + haze * light.haze
        y = np.where(
            y > 0.72, 0.72 + 0.26 * np.tanh((y - 0.72) / 0.26), y
        )  # bright roofs saturate softly
        curves.append(np.clip(np.rint(y * 255), 0, 255).astype(np.uint8))
    return np.concatenate(curves).tolist()


def render(seed, city, site, raster, px, alike=1, strength=1.0):
    """One raster as an RGB image."""
    style, light = city_style(seed, city, alike), site_light(seed, city, site, strength)
    rnd = random.Random(f"raster {seed} {city} {site} {raster}")
    scene, bend = lay_out(rnd, style, light, px * METRES / 2)
    rng = np.random.default_rng(rnd.getrandbits(64))
    texture = [
        smooth(rng, px, cell, spread)
        for cell, spread in ((3, 0.45), (9, 0.5), (32, 0.6), (150, 0.6))
    ]
    cloud, warmth = (
        smooth(rng, px, 450, 0.13),
        smooth(rng, px, 450, 0.045),
    )  # light that changes across a raster
    shade = 1 - light.shade * np.array(
        [0.92, 1.0, 1.14], np.float32
    )  # shadows are bluish: the sky lights them
    whole = Image.new("RGB", (px, px))
    for first, pixels, shadow in draw(scene, bend, light, px, rng):
        rows = len(pixels)
        noise = rng.integers(-110, 111, (rows, px), dtype=np.int8) * np.float32(0.28 / 64) + sum(
            t(first, rows) for t in texture
        )
        noise *= pixels[:, :, 3] * np.float32(0.2 / 128)
        dim, bright, warm = (
            shadow * np.float32(1 / 255),
            np.exp(cloud(first, rows)),
            warmth(first, rows),
        )
        out = np.empty((rows, px, 3), np.uint8)
        for c in range(3):
            gain = (
                bright
                * (1 + (1 - c) * warm)
                * (1 + noise * (1.07, 1.0, 0.95)[c])
                * (1 - dim * shade[c])
            )
            out[:, :, c] = np.clip(pixels[:, :, c] * gain + 0.5, 0, 255)
        whole.paste(Image.fromarray(out), (0, first))
    mean, grey = np.asarray(whole.reduce(8)).mean(axis=(0, 1)) / 255, (1 - light.vivid) / 3
    whole = whole.convert(
        "RGB",
        tuple(0 if c == 3 else grey + light.vivid * (r == c) for r in range(3) for c in range(4)),
    )
    return whole.point(tone_curves(light, mean))


def write(path, *what):
    """Draw one raster into a hidden file and rename it: what has the final name is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        render(*what).save(part, "JPEG", quality=90)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def city_names(count):
    """`Name (CODE)` for so many cities: the list above, then syllables put together."""
    names, codes, rnd = list(NAMES), {n[-4:-1] for n in NAMES}, random.Random("names")
    while len(names) < count:
        name = "".join(
            rnd.choice(part.split())
            for part in (
                "Al Bar Cor Del Er Fal Gor Hel Il Kar Lon Mar Nor Or Pel Quil Ros Sel Tor Ul Var Wen Yor Zel",
                "a e i o u",
                "burgh dal dor fell grad ham lis mar mont nis polis ra stan ton vale via",
            )
        )
        code = (
            name[0] + rnd.choice("JWXZ") + rnd.choice("BDFGHKLMNPRSTVZ")
        )  # no second letter of the codes in cities.csv
        if code not in codes and name not in {n[:-6] for n in names}:
            codes.add(code)
            names.append(f"{name} ({code})")
    return names[:count]


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, without the usage
        self.exit(2, f"{self.prog}: error: {message}\n")


def parse(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("data/raw"),
        help="folder to write to (default: %(default)s)",
    )
    numbers = {
        "cities": (6, 1, 100, "cities"),
        "sites": (3, 2, 99, "sites of each city; the last one is held out, so two are needed"),
        "rasters": (1, 1, 999, "rasters of each site"),
        "size": (2400, 480, 30000, "pixels a side; the published rasters have 4800"),
        "seed": (0, 0, 2**31 - 1, "another seed, other cities"),
        "alike": (
            1,
            1,
            100,
            "cities in a group that share kind of building, street pattern and roofs",
        ),
        "workers": (os.cpu_count() or 1, 1, 1024, "processes"),
    }
    for name, (default, low, high, meaning) in numbers.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            default=default,
            help=f"{meaning} ({low} to {high}, default: {default})",
        )
    parser.add_argument(
        "--light",
        type=float,
        default=1.0,
        help="how much light and season differ between sites (0 to 3, default: 1)",
    )
    args = parser.parse_args(argv)
    if not 0 <= args.light <= 3:
        parser.error(f"--light {args.light}: must be 0 to 3")
    for name, (_, low, high, meaning) in numbers.items():
        if not low <= getattr(args, name) <= high:
            parser.error(f"--{name} {getattr(args, name)}: must be {low} to {high} ({meaning})")
    return parser, args


def main(argv=None):
    parser, args = parse(argv)
    start = time.time()
    jobs = [
        (
            args.out / city / f"site{s + 1:02d}" / f"{2020 + r}.jpg",
            args.seed,
            c,
            s,
            r,
            args.size,
            args.alike,
            args.light,
        )
        for c, city in enumerate(city_names(args.cities))
        for s in range(args.sites)
        for r in range(args.rasters)
    ]
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with (
            ProcessPoolExecutor(min(args.workers, len(jobs))) as pool,
            tqdm(total=len(jobs), unit="raster") as bar,
        ):
            try:
                for done in as_completed([pool.submit(write, *job) for job in jobs]):
                    done.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    except OSError as problem:
        parser.error(f"cannot write to {args.out}: {problem}")
    except BrokenProcessPool:
        sys.exit(
            f"{parser.prog}: error: a process was ended from outside, perhaps for want of memory; try fewer --workers"
        )
    others = {p for p in args.out.rglob("*.jpg") if not p.name.startswith(".")} - {
        job[0] for job in jobs
    }
    if others:
        print(
            f"note: {args.out} holds {len(others)} more rasters that this call did not write, such as {min(others)}"
        )
    print(
        f"{len(jobs)} rasters of {args.size} x {args.size} pixels in {args.out}, {time.time() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
