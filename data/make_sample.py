"""Draw a sample data set: made-up cities seen from above.

A pixel is 0.417 m wide, as in the published rasters.

    python data/make_sample.py
    python data/make_sample.py --cities 12 --rasters 2 --size 4800
    python data/make_sample.py --cities 12 --alike 4 --light 2
    python data/make_sample.py --cities 4 --one-style --sensors city

The first draws 6 cities x 3 sites x 1 raster of 2400 x 2400 pixels. The third is hard: three groups
of four cities much alike, and other light at each site. In the last nothing but the camera tells
the cities apart: a network that does well on it has learned nothing about cities.

Writes <out>/<City (CODE)>/<site>/<raster>.jpg, the layout that preprocessing.py reads. Files of
the same names are written again, others are left alone. The same arguments give the same bytes
(with the same versions of Python, numpy and Pillow).

What makes a city (streets, buildings, roofs, trees) depends on the seed and the city's number
only; the light at a site (sun, exposure, colour cast, haze, season) on the site as well; what
stands where on the raster as well. So asking for more cities, sites or rasters changes none of
the others. Light differs far more from site to site than the mean colour does from city to city:
whoever wants to tell these cities apart has to look at what is built. With --alike N cities 1 to
N, N + 1 to 2 N and so on share their kind of building, street pattern and roofs, and differ by
little in all else. Of --twins, --one-style and --sensors the truth is known too: which cities are
one and the same, what alone differs, and at which sites the camera is another.
"""

# The order in which random numbers are drawn decides the bytes: a statement that draws must not
# change its place, nor an argument that draws its place among the others.

import argparse
import io
import math
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

# The script is started by its path, so that Python looks for modules beside it only.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dl_slicer import machine
from dl_slicer.cli import InputError, Parser, number, printable, run
from dl_slicer.files import atomic, clear_leftovers, hold

METRES = 0.417  # a pixel of the raster
FINE = 2  # drawn this much larger and averaged down, for smooth edges
BAND = 512  # rows drawn at a time: the large canvas stays small

# Pillow's plain four-channel mode, here for red, green, blue and the roughness of the surface.
CANVAS = "CMYK"

Colour = Sequence[float]  # red, green and blue, 0 to 255
Quad = list[complex]  # four corners, clockwise as seen; see "Geometry"

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
# Of the names after these: a beginning, a vowel and an end.
SYLLABLES = (
    "Al Bar Cor Del Er Fal Gor Hel Il Kar Lon Mar Nor Or Pel Quil Ros Sel Tor Ul Var Wen Yor Zel",
    "a e i o u",
    "burgh dal dor fell grad ham lis mar mont nis polis ra stan ton vale via",
)

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
LEAVES = [(58, 84, 44), (70, 92, 50), (50, 76, 50), (78, 90, 54)]
LAWNS = [(98, 118, 70), (108, 122, 74), (88, 112, 68), (118, 122, 82)]
SOILS = [(160, 140, 112), (150, 134, 112), (172, 150, 122), (142, 130, 114)]
PAVINGS = [(160, 156, 150), (170, 162, 150), (150, 148, 146)]
DRY_LAWN = (158, 146, 108)
DRY_LEAF = (140, 120, 74)
PAINT = (205, 203, 194)  # of markings on streets
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

# What a kind of city is built of, as ranges: metres of a block, a street, an avenue and a lot,
# storeys, the share of flat roofs, trees a hectare, the radius of their crowns, cars along the
# kerb.
KINDS = {
    "houses": {
        "length": (120, 165),
        "depth": (64, 76),
        "street": (9, 11),
        "avenue": (17, 22),
        "lot": (15, 20),
        "storeys": (1, 2),
        "flat": (0.03, 0.15),
        "trees": (30, 70),
        "crown": (2.2, 5.5),
        "cars": (0.2, 0.35),
    },
    "perimeter": {
        "length": (90, 125),
        "depth": (74, 92),
        "street": (11, 14),
        "avenue": (22, 28),
        "lot": (13, 22),
        "storeys": (5, 7),
        "flat": (0.15, 0.4),
        "trees": (8, 20),
        "crown": (2.0, 4.0),
        "cars": (0.5, 0.8),
    },
    "packed": {
        "length": (70, 100),
        "depth": (48, 66),
        "street": (5, 7),
        "avenue": (13, 18),
        "lot": (8, 12),
        "storeys": (1, 3),
        "flat": (0.5, 0.8),
        "trees": (4, 14),
        "crown": (1.8, 4.5),
        "cars": (0.1, 0.2),
    },
    "slabs": {
        "length": (130, 165),
        "depth": (92, 120),
        "street": (10, 14),
        "avenue": (30, 38),
        "lot": (45, 85),
        "storeys": (5, 9),
        "flat": (0.9, 1.0),
        "trees": (35, 70),
        "crown": (2.0, 4.2),
        "cars": (0.3, 0.5),
    },
    "rows": {
        "length": (110, 170),
        "depth": (58, 70),
        "street": (9, 11),
        "avenue": (14, 18),
        "lot": (5, 6.5),
        "storeys": (2, 2),
        "flat": (0.0, 0.05),
        "trees": (12, 30),
        "crown": (1.6, 3.6),
        "cars": (0.6, 0.9),
    },
    "towers": {
        "length": (120, 160),
        "depth": (95, 125),
        "street": (11, 15),
        "avenue": (26, 32),
        "lot": (24, 36),
        "storeys": (10, 20),
        "flat": (1.0, 1.0),
        "trees": (25, 50),
        "crown": (1.8, 3.4),
        "cars": (0.25, 0.45),
    },
}
# A city keeps these as ranges, from which each building or tree draws; of the others it has a
# value of its own.
RANGES = ("lot", "storeys", "crown")


@dataclass
class Style:
    """What makes a city. From length to cars: see KINDS."""

    kind: str
    pattern: str  # of the streets
    length: float
    depth: float
    street: float
    avenue: float
    lot: tuple[float, float]
    storeys: tuple[float, float]
    flat: float
    trees: float
    crown: tuple[float, float]
    cars: float
    second: str  # the kind that a few blocks are built of
    angle: float  # degrees by which the streets are turned
    every: int  # each so-many-th street is an avenue
    bend: float  # metres by which the streets wind
    roofs: list[Colour]
    leaf: Colour
    lawn: Colour
    soil: Colour
    paving: Colour
    asphalt: Colour
    green: float  # share of yards that are lawn
    pools: float  # share of houses that have one
    water: str  # river, canal or none


@dataclass
class Light:
    """How a site was photographed."""

    sun: complex  # unit vector along the ground towards the sun
    reach: float  # metres of shadow for each metre of height
    shade: float  # what is left of the light in a shadow
    exposure: float
    contrast: float
    vivid: float
    cast: tuple[float, float, float]  # of red, green and blue
    haze: float
    haze_colour: tuple[float, float, float]
    dry: float  # the season: 0 lush, 1 straw
    lean: complex  # metres by which a metre of wall leans: the camera is never straight above


def city_style(seed: int, city: int, alike: int = 1) -> Style:
    """What makes a city. Neighbouring numbers get another kind, pattern, roofs and angle.

    The rest is drawn at random. alike: cities come in groups of so many, which have the group's
    style with small changes.
    """
    if alike > 1:
        group = city_style(seed, city // alike)
        return sibling(group, random.Random(f"alike {seed} {city}"))
    rnd = random.Random(f"style {seed} {city}")
    lap, place = divmod(city, len(KINDS))
    kind = list(KINDS)[place]
    pattern = PATTERNS[(city + lap) % len(PATTERNS)]
    materials = list(ROOFS)
    measures = {
        key: bounds if key in RANGES else rnd.uniform(*bounds)
        for key, bounds in KINDS[kind].items()
    }
    return Style(
        kind=kind,
        pattern=pattern,
        **measures,
        second=rnd.choice([other for other in KINDS if other not in (kind, "towers", "packed")]),
        angle=(90 * 0.618034 * (city + 0.2) + rnd.uniform(-6, 6)) % 90,
        every=rnd.randint(3, 5),
        bend=rnd.uniform(9, 15) if pattern == "organic" else rnd.uniform(0, 2),
        roofs=ROOFS[materials[(place + 3 * lap) % len(materials)]] * 3
        + ROOFS[rnd.choice(materials)],
        leaf=rnd.choice(LEAVES),
        lawn=rnd.choice(LAWNS),
        soil=rnd.choice(SOILS),
        paving=rnd.choice(PAVINGS),
        asphalt=(rnd.randint(96, 124),) * 3,
        green=rnd.uniform(0.1, 0.35) if kind == "packed" else rnd.uniform(0.35, 0.85),
        pools=rnd.choice([0, 0.03, 0.12]) if kind == "houses" else 0,
        water=rnd.choice(["river", "river", "canal", "none"]),
    )


@dataclass(frozen=True)
class Differences:
    """How cities and sites differ, but for their numbers."""

    alike: int = 1  # see city_style
    light: float = 1.0  # see site_light
    twins: tuple[int, ...] = ()  # how many cities are in each group that shares one style
    one_style: str | None = None  # None: each has its own; see ONE_STYLE
    sensors: str = "none"  # see SENSORS
    sites: int = 2  # of each city


USUAL = Differences()
ONE_STYLE = ("same", "turned")  # nothing differs, or nothing but the direction of the streets
SENSORS = ("none", "city", "site")
ODD_SENSOR = 3.5  # times as strong as that of a city


def first_twin(city: int, twins: Sequence[int]) -> int:
    """Give the city by whose style one is drawn: the first of its group, else itself."""
    start = 0
    for count in twins:
        if start <= city < start + count:
            return start
        start += count
    return city


def drawn_style(seed: int, city: int, how: Differences) -> Style:
    """Give the style by which a city is drawn: its own, or another's where the truth is known.

    With one style turned the streets of the cities differ by 10 degrees and more, and none by more
    than 45: a flip, which training shows a network too, would turn those into one another.
    """
    if how.one_style is None:
        return city_style(seed, first_twin(city, how.twins), how.alike)
    style = city_style(seed, 0, how.alike)
    if how.one_style == "turned":
        return replace(style, angle=45 * (0.618034 * city % 1))
    return style


def odd_site(city: int, sites: int) -> int:
    """Give the site of a city that has a sensor of its own with `--sensors site`; not the last."""
    return city % (sites - 1)


def sensor_of(seed: int, city: int, site: int, how: Differences) -> tuple[float, ...] | None:
    """Give the sensor at a site as Pillow's matrix (3, 4) for red, green and blue; None: usual."""
    if how.sensors == "none":
        return None
    if how.sensors == "city":
        return sensor_matrix(seed, city, 1)
    is_odd = site == odd_site(city, how.sites)
    return sensor_matrix(seed, city, ODD_SENSOR if is_odd else 0)


def sensor_matrix(seed: int, number: int, strength: float) -> tuple[float, ...]:
    """Make a sensor that turns and shifts colours, as Pillow's matrix (3, 4).

    It changes the two colour differences of JPEG (ITU-R BT.601: blue and red less the luma Y) and
    leaves Y as it is: without colour nothing of it is left. Before that all sensors take the same
    quarter of the contrast away, so that no shifted colour is cut off at 0 or 255. strength: of
    turn and shift; 0: neither.
    """
    phase = math.tau * (0.618034 * number + random.Random(f"sensor {seed}").random())
    turned = 0.25 * strength * math.sin(3 * phase)
    shift = 14 * strength * np.array([0, math.cos(phase), math.sin(phase)])
    to_ycc = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    turn_colours = np.array(
        [
            [1, 0, 0],
            [0, math.cos(turned), -math.sin(turned)],
            [0, math.sin(turned), math.cos(turned)],
        ]
    )
    back = np.linalg.inv(to_ycc)
    matrix = 0.75 * back @ turn_colours @ to_ycc
    offset = back @ shift + 0.25 * 128
    return tuple(np.column_stack([matrix, offset]).ravel().tolist())


def sibling(style: Style, rnd: random.Random) -> Style:
    """Another city of the same group.

    Kind, pattern and most roofs stay, every measure moves by up to half its range, ground and
    trees differ.
    """
    measures = {}
    for key, (low, high) in KINDS[style.kind].items():
        move = rnd.uniform(-0.5, 0.5) * (high - low)
        if key in ("lot", "crown"):
            measures[key] = (low + move, high + move)
        elif key != "storeys":
            measures[key] = min(high, max(low, getattr(style, key) + move))
    other = city_style(rnd.getrandbits(32), 0)
    ground = ("leaf", "lawn", "soil", "paving", "asphalt", "water")
    return replace(
        style,
        **measures,
        **{key: getattr(other, key) for key in ground},
        roofs=style.roofs + 2 * ROOFS[rnd.choice(list(ROOFS))],
        angle=rnd.uniform(0, 90),
    )


def site_light(seed: int, city: int, site: int, strength: float = 1.0) -> Light:
    """How a site was photographed. strength: of the differences between sites.

    All cities pass through the same ranges, so light tells nothing about the city.
    """
    common = random.Random(f"light {seed}")
    own = random.Random(f"light {seed} {city} {site}")
    place = place_in_ranges(site)

    def spread(low, high):
        if common.random() < 0.5:
            low, high = high, low
        value = low + (high - low) * min(1, max(0, place + own.uniform(-0.15, 0.15)))
        value += (strength - 1) * (value - (low + high) / 2)
        return value if min(low, high) < 0 else max(0, value)

    sun = math.radians(spread(110, 250))  # from north: late morning to afternoon
    side = own.uniform(0, math.tau)
    warm = spread(-0.04, 0.04)
    tint = spread(-0.02, 0.02)
    cold = spread(0, 0.03)
    return Light(
        sun=complex(math.sin(sun), -math.cos(sun)),
        reach=spread(0.5, 1.0),
        shade=spread(0.39, 0.48),
        exposure=spread(0.41, 0.51),
        contrast=spread(0.94, 1.12),
        vivid=spread(0.75, 0.95),
        cast=(1 + warm, 1 + tint, 1 - warm),
        haze=spread(0, 0.10),
        haze_colour=(0.68 - cold, 0.70, 0.72 + cold),
        dry=spread(0, 0.4),
        lean=spread(0.02, 0.13) * complex(math.cos(side), math.sin(side)),
    )


def place_in_ranges(site: int) -> float:
    """Where in the ranges of light a site lies, from 0 to 1.

    The first two lie near the two ends, later ones between them at 1/2, 1/4, 3/4 and so on
    (van der Corput's sequence: the binary digits in reverse order).
    """
    if site < 2:
        return site
    digits = f"{site - 1:b}"
    return int(digits[::-1], 2) / 2 ** len(digits)


# Geometry. Points are complex numbers in metres, x right and y down, on a plane where the city's
# main direction is level. A block, a lot or a roof is a list of four corners, clockwise as seen;
# Bend carries them to the raster.


def cross(a: complex, b: complex) -> float:
    """The cross product of two vectors."""
    return a.real * b.imag - a.imag * b.real


def extent(quad: Quad) -> tuple[float, float]:
    """Length along the first edge, depth across it."""
    length = abs(quad[1] - quad[0] + quad[2] - quad[3]) / 2
    depth = abs(quad[3] - quad[0] + quad[2] - quad[1]) / 2
    return length, depth


def at(quad: Quad, u: float, v: float) -> complex:
    """The point at a share u of the length and a share v of the depth."""
    return (quad[0] * (1 - u) + quad[1] * u) * (1 - v) + (quad[3] * (1 - u) + quad[2] * u) * v


def part(quad: Quad, u0: float, u1: float, v0: float, v1: float) -> Quad:
    """What lies between two shares of the length and two of the depth.

    u0 > u1 with v0 > v1 turns it half round.
    """
    return [at(quad, u0, v0), at(quad, u1, v0), at(quad, u1, v1), at(quad, u0, v1)]


def turn(quad: Quad) -> Quad:
    """The same corners, with the next edge first."""
    return quad[1:] + quad[:1]


def along(quad: Quad) -> Quad:
    """The same corners, with a long edge first."""
    length, depth = extent(quad)
    return quad if length >= depth else turn(quad)


def direction(start: complex, end: complex) -> complex:
    """The unit vector from start to end; 0 where they are one point."""
    return (end - start) / (abs(end - start) or 1)


def inset(quad: Quad, widths: Sequence[float]) -> Quad | None:
    """Each edge moved inwards by its width; None where too little is left."""
    ahead = [direction(quad[i], quad[(i + 1) % 4]) for i in range(4)]
    moved = [quad[i] + ahead[i] * 1j * widths[i] for i in range(4)]
    corners = []
    for i in range(4):
        turned = cross(ahead[i], ahead[i - 1])
        if abs(turned) < 0.2:
            return None
        corners.append(moved[i] + ahead[i] * cross(moved[i - 1] - moved[i], ahead[i - 1]) / turned)
    left = [((corners[(i + 1) % 4] - corners[i]) * ahead[i].conjugate()).real for i in range(4)]
    return corners if min(left) > 4 else None


def dense(points: list[complex]) -> list[complex]:
    """More points along the edges, so that long ones bend with the streets."""
    denser = []
    for start, end in zip(points, points[1:] + points[:1], strict=True):
        count = max(1, int(abs(end - start) / 20))
        denser += [start + (end - start) * i / count for i in range(count)]
    return denser


class Plot(NamedTuple):
    """A piece of ground, and along each edge the width that a street or a gap takes from it.

    A block reaches to the middle of its streets, so half a street's width lies within it.
    """

    corners: Quad
    widths: list[float]


def subdivide(
    rnd: random.Random,
    quad: Quad,
    area: float,
    gap: Callable[[float | None], float],
    skew: float,
) -> Iterator[Plot]:
    """Halve a plot across its longer side again and again, to pieces of about `area` m².

    gap(times): width of a gap in something `times` as large as a piece is to be; gap(None): of
    the outer edge.
    """
    stack = [Plot(quad, [gap(None)] * 4)]
    while stack:
        corners, widths = stack.pop()
        length, depth = extent(corners)
        if length * depth < area * rnd.uniform(0.9, 1.8):
            yield Plot(corners, widths)
            continue
        if length < depth:
            corners = turn(corners)
            widths = widths[1:] + widths[:1]
        a, b, c, d = corners
        cut = rnd.uniform(0.38, 0.62)
        lean = rnd.uniform(-skew, skew)
        between = gap(length * depth / area)
        upper = a + (b - a) * (cut + lean)
        lower = d + (c - d) * (cut - lean)
        stack.append(Plot([a, upper, lower, d], [widths[0], between, widths[2], widths[3]]))
        stack.append(Plot([upper, b, c, lower], [widths[0], widths[1], widths[2], between]))


# Streets. Each pattern yields blocks that reach to the middle of their streets.


def half_width(style: Style, number: int) -> float:
    """Half the width of a street, by its number: each so-many-th is an avenue."""
    return (style.avenue if number % style.every == 0 else style.street) / 2


def grid_blocks(rnd: random.Random, style: Style, radius: float) -> Iterator[Plot]:
    """Streets at right angles."""

    def strips(step):
        """Pairs of neighbouring streets: (place, half width) of each."""
        place = -radius - rnd.uniform(0, step)
        number = rnd.randrange(style.every)
        streets = []
        while place < radius:
            streets.append((place, half_width(style, number)))
            place += step * rnd.uniform(0.92, 1.08)
            number += 1
        return list(zip(streets, streets[1:], strict=False))

    across = strips(style.length)
    down = strips(style.depth)
    for (x0, left), (x1, right) in across:
        for (y0, upper), (y1, lower) in down:
            corners = [complex(x0, y0), complex(x1, y0), complex(x1, y1), complex(x0, y1)]
            yield Plot(corners, [upper, right, lower, left])


def organic_blocks(rnd: random.Random, style: Style, radius: float) -> Iterator[Plot]:
    """Streets that grew: blocks halved again and again, none at right angles."""

    def gap(times):
        if times is None or times > 40:
            width = style.avenue
        elif times > 5:
            width = style.street * rnd.uniform(0.9, 1.2)
        else:
            width = style.street * 0.8
        return width / 2

    centre = complex(rnd.uniform(-60, 60), rnd.uniform(-60, 60))
    whole = [centre + 1.1 * radius * corner for corner in (-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j)]
    yield from subdivide(rnd, whole, style.length * style.depth * 0.75, gap, 0.08)


class Ring(NamedTuple):
    """A ring of blocks around the centre of a radial city."""

    radius: float  # the inner one
    count: int  # of its blocks


@dataclass
class Rings:
    """All rings of a radial city."""

    centre: complex
    rings: list[Ring]

    def blocks(self, style: Style) -> Iterator[Plot]:
        """The blocks of all rings but the last, with straight sides."""
        for index, (inner, outer) in enumerate(zip(self.rings, self.rings[1:], strict=False)):
            count = inner.count
            for i in range(count):
                # Eight avenues lead to the centre.
                near, far = [half_width(style, 0 if j * 8 % count == 0 else 1) for j in (i, i + 1)]
                a, b = [np.exp(1j * math.tau * j / count) for j in (i, i + 1)]
                spokes = (inner.radius * b, inner.radius * a, outer.radius * a, outer.radius * b)
                yield Plot(
                    [complex(self.centre + spoke) for spoke in spokes],
                    [half_width(style, index), near, half_width(style, index + 1), far],
                )

    def round_off(self, points: np.ndarray) -> np.ndarray:
        """Carry the straight sides of the rings to circles."""
        away = points - self.centre
        rounded = points
        for count in sorted({ring.count for ring in self.rings}):
            half = math.pi / count
            moved = away * np.cos(np.angle(away) % (2 * half) - half) / math.cos(half)
            innermost = min(ring.radius for ring in self.rings if ring.count == count)
            is_here = np.abs(moved) > innermost - 3  # 3 m: still on the street
            rounded = np.where(is_here, self.centre + moved, rounded)
        return rounded


def radial_rings(rnd: random.Random, style: Style, radius: float, centre: complex) -> Rings:
    """Rings out to twice the radius.

    Each has as many blocks as the one inside it, or twice that.
    """
    inner = style.depth * 0.6
    count = 8
    rings = []
    while inner < 2 * radius:
        while math.tau * inner / count > 1.3 * style.length:
            count *= 2
        rings.append(Ring(inner, count))
        inner += style.depth * rnd.uniform(0.92, 1.08)
    return Rings(centre, rings)


# What stands on a block. A scene collects what is drawn: ground from first to last, then all that
# has a height.


class Ground(NamedTuple):
    """An area of one colour."""

    outline: list[complex]
    colour: Colour
    roughness: int


class Solid(NamedTuple):
    """A building, a part of one, or a car."""

    corners: Quad
    top: float  # height of the roof above the ground
    above: float  # its height above what it stands on
    form: str  # flat, gable, hip, plain or car
    colour: Colour


class Tree(NamedTuple):
    """A tree, metres."""

    centre: complex
    radius: float
    height: float


def vary(rnd: random.Random, colour: Colour, amount: float) -> Colour:
    """A colour like this one: lighter or darker by up to that share, its hue by a quarter of it."""
    light = 1 + rnd.uniform(-amount, amount)
    return tuple(c * light * (1 + rnd.uniform(-amount, amount) / 4) for c in colour)


@dataclass
class Scene:
    """What is seen on a raster, and how more is put there."""

    rnd: random.Random
    style: Style
    lawn: Colour  # in the season of the site
    ground: list[Ground] = field(default_factory=list)
    solids: list[Solid] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)

    def paint(
        self, outline: list[complex], colour: Colour, roughness: int, amount: float = 0.05
    ) -> None:
        """An area of about this colour. amount: by what share it may differ."""
        self.ground.append(Ground(outline, vary(self.rnd, colour, amount), roughness))

    def strip(
        self,
        start: complex,
        end: complex,
        wide: float,
        colour: Colour = PAINT,
        roughness: int = 20,
    ) -> None:
        """A bar from start to end: a marking, a path, a bridge."""
        side = direction(start, end) * 0.5j * wide
        self.paint([start - side, end - side, end + side, start + side], colour, roughness)

    def yard(self, outline: list[complex], amount: float = 0.1) -> None:
        """A plot of open ground: lawn, soil or paving."""
        style = self.style
        draw = self.rnd.random()
        if draw < style.green:
            self.paint(outline, self.lawn, 110, amount)
        elif draw < 0.6 + 0.4 * style.green:
            self.paint(outline, style.soil, 90, amount)
        else:
            self.paint(outline, style.paving, 50, amount)

    def build(
        self, corners: Quad, top: float, form: str, colour: Colour, above: float | None = None
    ) -> None:
        """Something solid. top: height of its roof; above: that over what it stands on."""
        self.solids.append(Solid(corners, top, top if above is None else above, form, colour))

    def roof(
        self,
        corners: Quad,
        storeys: float,
        flat: bool | None = None,
        colour: Colour | None = None,
        hip: bool = False,
    ) -> None:
        """A building: flat, or pitched with the ridge along the first edge.

        flat: None leaves it to chance. colour: None takes one of the city's roofs.
        hip: a pitched roof slopes at its ends, too.
        """
        height = 3.1 * storeys + 1
        colour = vary(self.rnd, colour or self.rnd.choice(self.style.roofs), 0.08)
        if flat is None:
            flat = self.rnd.random() < self.style.flat
        if not flat:
            self.build(corners, height + 1.5, "hip" if hip else "gable", colour)
            return
        self.build(corners, height, "flat", colour)
        self.clutter(corners, height, colour)

    def clutter(self, corners: Quad, height: float, colour: Colour) -> None:
        """What stands on a flat roof."""
        rnd = self.rnd
        length, depth = extent(corners)
        for _ in range(min(9, int(length * depth / 110 * rnd.random() + 0.4))):
            u = rnd.uniform(0.1, 0.8)
            v = rnd.uniform(0.15, 0.75)
            wide = rnd.uniform(1.2, 3.5) / length
            deep = rnd.uniform(1.2, 3) / depth
            if u + wide < 0.95 and v + deep < 0.92:
                tone = vary(rnd, rnd.choice([(190, 190, 188), (120, 120, 122), colour]), 0.1)
                place = part(corners, u, u + wide, v, v + deep)
                self.build(place, height + 3, "plain", tone, above=rnd.uniform(1, 2.5))

    def tree(self, centre: complex, scale: float = 1.0) -> None:
        """A tree of the city's size, times scale."""
        radius = self.rnd.uniform(*self.style.crown) * scale
        self.trees.append(Tree(centre, radius, radius * self.rnd.uniform(1.5, 2.3)))

    def plant(self, quad: Quad, per_hectare: float, scale: float = 1.0) -> None:
        """Trees all over a plot."""
        length, depth = extent(quad)
        for _ in range(int(length * depth * per_hectare / 1e4 + self.rnd.random())):
            self.tree(at(quad, self.rnd.random(), self.rnd.random()), scale)

    def cars(
        self,
        start: complex,
        end: complex,
        share: float,
        abreast: bool = False,
        pitch: float = 5.6,
    ) -> None:
        """Cars along a line, nose to tail or side by side. share: of the places that are taken."""
        rnd = self.rnd
        ahead = direction(start, end)
        nose = ahead
        if abreast:
            nose = ahead * 1j
            pitch = 2.7
        for i in range(int(abs(end - start) / pitch)):
            if rnd.random() < share:
                middle = start + ahead * pitch * (i + rnd.uniform(0.4, 0.6))
                long = nose * rnd.uniform(2.0, 2.4)
                wide = nose * rnd.uniform(0.85, 0.95) * 1j
                corners = [
                    middle - long - wide,
                    middle + long - wide,
                    middle + long + wide,
                    middle - long + wide,
                ]
                self.build(corners, 1.5, "car", rnd.choice(CARS))


def back_to_back(block: Quad, least_depth: float) -> list[Quad]:
    """Two rows, each with its front to a street; one where the block is no deeper than that."""
    if extent(block)[1] <= least_depth:
        return [block]
    return [part(block, 0, 1, 0, 0.5), part(block, 1, 0, 1, 0.5)]


def fill_houses(scene: Scene, block: Quad) -> None:
    """Two rows of detached houses back to back, each on a lot of its own with a drive."""
    rnd = scene.rnd
    block = along(block)
    lots = max(1, round(extent(block)[0] / rnd.uniform(*KINDS["houses"]["lot"])))
    for row in back_to_back(block, 36):
        for i in range(lots):
            lot = part(row, i / lots, (i + 1) / lots, 0, 1)
            if rnd.random() < 0.5:
                lot = [lot[1], lot[0], lot[3], lot[2]]  # mirrored: the drive on the other side
            fill_house_lot(scene, lot)


def fill_house_lot(scene: Scene, lot: Quad) -> None:
    """A house with its drive and garden; perhaps a wing, a shed and a pool."""
    rnd = scene.rnd
    style = scene.style
    wide, deep = extent(lot)
    front = rnd.uniform(4.5, 7.5) / deep
    back = rnd.uniform(9, 13) / deep
    left = rnd.uniform(0.06, 0.12)
    right = rnd.uniform(0.72, 0.93)
    scene.yard(lot)
    scene.yard(part(lot, 0, 1, 0, front))
    drive = part(lot, 0.78, 0.96, 0, front + back * rnd.uniform(0.3, 1.2))
    scene.paint(drive, style.paving, 40, 0.1)
    scene.cars(at(lot, 0.87, 0.3 * front), at(lot, 0.87, front), 0.5)
    look = {
        "storeys": rnd.choice([1, 1, 2]),
        "flat": rnd.random() < style.flat,
        "colour": vary(rnd, rnd.choice(style.roofs), 0.1),
    }
    house = along(part(lot, left, right, front, front + back))
    scene.roof(house, hip=rnd.random() < 0.5, **look)
    if rnd.random() < 0.6:  # a wing with a ridge of its own
        side = rnd.choice([left + 0.03, right - 0.4])
        near, far = rnd.choice([(-2.5 / deep, back * 0.5), (back * 0.5, back + 3.5 / deep)])
        scene.roof(turn(part(lot, side, side + 0.34, front + near, front + far)), **look)
    if rnd.random() < 0.35:  # a shed
        scene.roof(part(lot, 0.66, 0.66 + 4.5 / wide, 0.8, 0.8 + 5 / deep), 0.6, True)
    if rnd.random() < style.pools:
        scene.paint(part(lot, 0.2, 0.2 + 7 / wide, 0.72, 0.72 + 4 / deep), (96, 170, 186), 10)
    scene.plant(part(lot, 0, 1, min(0.9, front + back), 1), style.trees * 2.2, 0.9)
    scene.plant(part(lot, 0, 0.7, 0, front), style.trees * 0.9)


def fill_rows(scene: Scene, block: Quad) -> None:
    """Terraces along the two long sides, narrow gardens behind them."""
    rnd = scene.rnd
    block = along(block)
    houses = max(2, round(extent(block)[0] / rnd.uniform(*KINDS["rows"]["lot"])))
    for row in back_to_back(block, 26):
        deep = extent(row)[1]
        houses_a_terrace = rnd.randint(6, 14)
        front = 3 / deep
        back = (3 + rnd.uniform(8, 9.5)) / deep
        for i in range(houses):
            if i % houses_a_terrace == 0:
                colour = rnd.choice(scene.style.roofs)
                if i and rnd.random() < 0.4:
                    continue  # a gap between two terraces
            lot = part(row, i / houses, (i + 1) / houses, 0, 1)
            scene.yard(lot, 0.12)
            scene.roof(part(lot, 0, 1, front, back), 2, False, vary(rnd, colour, 0.04))
            if rnd.random() < 0.6:  # a lower part behind the house
                behind = part(lot, 0.05, 0.55, back, back + rnd.uniform(2.5, 5) / deep)
                scene.roof(turn(behind), 1.2)
            if rnd.random() < 0.25:  # a shed
                scene.roof(part(lot, 0.2, 0.75, 0.9, 0.97), 0.5, True, (150, 146, 140))
        scene.plant(part(row, 0, 1, min(0.9, back + 0.1), 1), scene.style.trees * 1.6)


def fill_perimeter(scene: Scene, block: Quad) -> None:
    """Tall houses wall to wall around courtyards, with wings along the walls between them."""
    rnd = scene.rnd
    style = scene.style
    block = along(block)
    length, depth = extent(block)
    thick = rnd.uniform(11, 14)
    storeys = rnd.uniform(*KINDS["perimeter"]["storeys"])
    has_courts = depth > 2.6 * thick
    du, dv = (thick / length, thick / depth) if has_courts else (0.5, 0.5)
    scene.paint(block, style.paving, 50)
    courts = max(1, round(length / 18))
    for i in range(courts):
        inside = part(block, du, 1 - du, dv, 1 - dv)
        v0, v1 = rnd.choice([(0, 1), (0, 0.5), (0.5, 1)])
        court = part(inside, i / courts, (i + 1) / courts, v0, v1)
        scene.yard(court)
        scene.plant(court, style.trees * rnd.choice([0, 3, 9]))
    long_sides = [part(block, 0, 1, 0, dv), part(block, 1, 0, 1, 1 - dv)]
    for side in long_sides:
        build_wall_to_wall(scene, side, storeys, dv)
    if dv < 0.5:
        build_wall_to_wall(scene, turn(turn(turn(part(block, 0, du, dv, 1 - dv)))), storeys)
        build_wall_to_wall(scene, turn(part(block, 1 - du, 1, dv, 1 - dv)), storeys)


def build_wall_to_wall(
    scene: Scene, side: Quad, storeys: float, share: float | None = None
) -> None:
    """The houses of a block's side.

    share: of the block's depth that the side takes, if its houses have wings into the court.
    """
    rnd = scene.rnd
    count = max(1, round(extent(side)[0] / rnd.uniform(*KINDS["perimeter"]["lot"])))
    for i in range(count):
        lot = part(side, i / count, (i + 1) / count, 0, 1)
        tall = storeys + rnd.choice([-1, 0, 0, 0, 1])
        colour = rnd.choice(scene.style.roofs)
        if rnd.random() > 0.03:
            scene.roof(lot, tall, colour=colour)
        if share is not None and 0 < i < count - 1 and rnd.random() < 0.6:
            u = rnd.choice([0, 0.5])
            end = 1 + rnd.uniform(0.5, 0.9) * (0.5 - share) / share
            wing = turn(part(lot, u, u + 0.5, 1, end))
            scene.roof(wing, rnd.choice([1, tall - 1]), colour=colour)


def fill_packed(scene: Scene, block: Quad) -> None:
    """Small plots, built over almost entirely."""
    rnd = scene.rnd
    style = scene.style

    def gap(times):
        if times is None:
            return 0.2
        if times < 4:
            return rnd.choice([0.1, 0.1, 0.3, 0.9])
        return rnd.uniform(0.5, 1.3)

    scene.paint(block, style.soil, 90)
    for plot in subdivide(rnd, block, rnd.uniform(80, 130), gap, 0.04):
        ground = inset(plot.corners, plot.widths)
        if ground is None:
            continue
        if rnd.random() < 0.16:
            scene.yard(ground)
            scene.plant(ground, style.trees * 9)
            continue
        if rnd.random() < 0.3:  # with a yard
            scene.paint(ground, style.paving, 60, 0.1)
            ground = part(ground, 0, rnd.uniform(0.55, 0.75), 0, 1)
        scene.roof(along(ground), rnd.choice([1, 1, 1, 2, 2, 3]))


@dataclass
class Slabs:
    """What the slabs of a block have in common."""

    wide: float  # metres
    storeys: float
    colour: Colour


def fill_slabs(scene: Scene, block: Quad) -> None:
    """Long slabs on a common lawn, with parking, paths and trees between them."""
    rnd = scene.rnd
    style = scene.style
    block = along(block)
    has_lawn = rnd.random() < style.green + 0.3
    scene.paint(dense(block), scene.lawn if has_lawn else style.soil, 110)
    if rnd.random() < 0.5:
        block = turn(block)
    rows = max(1, int(extent(block)[1] / rnd.uniform(36, 48)))
    slabs = Slabs(
        wide=rnd.uniform(12, 15),
        storeys=rnd.uniform(*KINDS["slabs"]["storeys"]),
        # Felt more than tiles: such roofs are greyer.
        colour=[0.6 * c + 54 for c in rnd.choice(style.roofs)],
    )
    for i in range(rows):
        row = part(block, 0.03, 0.97, i / rows, (i + 1) / rows)
        length, deep = extent(row)
        road = part(row, 0, 1, 0.78, 0.78 + 4 / deep)
        scene.paint(dense(road), [c + 14 for c in style.asphalt], 30)
        kerb = 0.78 + 5.5 / deep
        scene.cars(at(row, 0.05, kerb), at(row, 0.95, kerb), 0.45, abreast=True)
        count = max(1, round(length / rnd.uniform(62, 95)))
        for j in range(count):
            cell = part(row, j / count, (j + 1) / count, 0, 1)
            fill_slab_cell(scene, cell, slabs, 0.22 + slabs.wide / deep)
        scene.plant(part(row, 0, 1, 0.55, 0.76), style.trees * 2.2)
        scene.plant(part(row, 0, 1, 0, 0.2), style.trees * 1.6)


def fill_slab_cell(scene: Scene, cell: Quad, slabs: Slabs, back: float) -> None:
    """A slab with lift houses on it and paths to its doors, or a kindergarten.

    back: share of the cell's depth where the slab ends.
    """
    rnd = scene.rnd
    style = scene.style
    if rnd.random() < 0.12:  # a kindergarten and its playground instead
        scene.paint(part(cell, 0.2, 0.8, 0.15, 0.6), style.soil, 80)
        scene.roof(part(cell, 0.25, 0.6, 0.2, 0.5), 2, True)
        return
    for u in (0.1, 0.3, 0.5, 0.7, 0.9):  # paths to the doors
        scene.strip(at(cell, u, back), at(cell, u, 0.8), 1.8, style.paving, 40)
    end = rnd.uniform(0.03, 0.12)
    slab = part(cell, end, 1 - end, 0.22, back)
    scene.roof(slab, slabs.storeys, True, slabs.colour)
    for u in (0.12, 0.37, 0.62, 0.87):  # lift houses
        lift_house = part(slab, u - 0.02, u + 0.02, 0.35, 0.65)
        colour = vary(rnd, slabs.colour, 0.1)
        scene.build(lift_house, 3.1 * slabs.storeys + 4, "plain", colour, above=2.5)


def fill_towers(scene: Scene, block: Quad) -> None:
    """Point blocks on podiums or in gardens, with car parks between them."""
    rnd = scene.rnd
    style = scene.style
    block = along(block)
    length, depth = extent(block)
    scene.paint(dense(block), style.paving, 50)
    colour = rnd.choice(style.roofs)
    has_podiums = rnd.random() < 0.4
    storeys = rnd.uniform(*KINDS["towers"]["storeys"])
    nu = max(1, round(length / rnd.uniform(46, 62)))
    nv = max(1, round(depth / rnd.uniform(44, 58)))
    for i in range(nu):
        for j in range(nv):
            cell = part(block, i / nu, (i + 1) / nu, j / nv, (j + 1) / nv)
            middle = part(cell, 0.06, 0.94, 0.06, 0.94)
            draw = rnd.random()
            if draw < 0.15:
                park_cars(scene, middle, style.asphalt)
                continue
            if has_podiums:
                scene.roof(middle, 3, True)
            else:
                lay_beds(scene, cell)
            if draw < 0.27:  # a playing court or a pool
                court = part(cell, 0.3, 0.7, 0.35, 0.65)
                scene.paint(court, rnd.choice([(120, 108, 98), (96, 160, 178)]), 20)
            else:
                build_tower(scene, cell, storeys, colour)


def lay_beds(scene: Scene, cell: Quad) -> None:
    """A garden: four beds with paths between them, some with lawn and trees."""
    rnd = scene.rnd
    style = scene.style
    a = rnd.uniform(0.35, 0.65)
    b = rnd.uniform(0.35, 0.65)
    for u0, u1, v0, v1 in ((0, a, 0, b), (a, 1, 0, b), (0, a, b, 1), (a, 1, b, 1)):
        bed = inset(part(cell, u0, u1, v0, v1), [1.6] * 4)
        if bed and rnd.random() < 0.4 + 0.5 * style.green:
            scene.paint(bed, scene.lawn, 110)
            scene.plant(bed, style.trees * rnd.choice([1, 3, 6]))


def build_tower(scene: Scene, cell: Quad, storeys: float, colour: Colour) -> None:
    """A tower somewhere on its cell."""
    rnd = scene.rnd
    wide, deep = extent(cell)
    w = rnd.uniform(20, 30) / wide
    d = rnd.uniform(18, 26) / deep
    tall = storeys * rnd.uniform(0.75, 1.2)
    u = (1 - w) * rnd.uniform(0.3, 0.7)
    v = (1 - d) * rnd.uniform(0.3, 0.7)
    if rnd.random() < 0.6:  # cross-shaped: flats with light from three sides
        wings = part(cell, u + w * 0.28, u + w * 0.72, v - 0.22 * d, v + 1.22 * d)
        scene.roof(wings, tall, True, colour)
    tower = part(cell, u, u + w, v, v + d)
    scene.roof(tower, tall, True, colour)
    machine_room = part(tower, 0.35, 0.65, 0.35, 0.65)
    scene.build(machine_room, 3.1 * tall + 6, "flat", vary(rnd, colour, 0.1), above=5)


def park_cars(scene: Scene, quad: Quad, colour: Colour) -> None:
    """A car park: rows of bays, more or less full."""
    length, depth = extent(quad)
    share = scene.rnd.uniform(0.2, 0.85)
    scene.paint(quad, colour, 40)
    rows = max(1, int(depth / 8.5))
    for row in range(rows):
        v = (row + 0.5) / rows
        for bay in range(int(length / 2.7) + 1):
            u = bay * 2.7 / length
            scene.strip(at(quad, u, v - 2.4 / depth), at(quad, u, v + 2.4 / depth), 0.15)
        scene.cars(at(quad, 0, v), at(quad, 1, v), share, abreast=True)


def fill_works(scene: Scene, block: Quad) -> None:
    """Halls or shops, and their car park."""
    rnd = scene.rnd
    block = along(block)
    scene.paint(block, scene.style.asphalt, 35)
    cut = rnd.uniform(0.45, 0.7)
    halls = rnd.randint(1, 3)
    colour = rnd.choice(ROOFS["white"] + ROOFS["felt"] * 2 + ROOFS["painted"][:1])
    built = inset(part(block, 0, cut, 0, 1), [4] * 4)
    car_park = inset(part(block, cut, 1, 0, 1), [4] * 4)
    if built:
        for k in range(halls):
            hall = part(built, k / halls, (k + 0.96) / halls, 0, rnd.uniform(0.75, 1))
            scene.roof(hall, rnd.uniform(2, 3), True, colour)
    if car_park:
        park_cars(scene, car_park, scene.style.asphalt)


def fill_park(scene: Scene, block: Quad) -> None:
    """Lawn with groups of trees, and paths or a sports field."""
    rnd = scene.rnd
    block = along(block)
    scene.paint(dense(block), scene.lawn, 120)
    length, depth = extent(block)
    if rnd.random() < 0.35 and depth > 45 and length > 66:
        u = 30 / length
        v = 20 / depth
        mark_pitch(scene, part(block, 0.5 - u, 0.5 + u, 0.5 - v, 0.5 + v))
        groups = [(0, 1, 0, 0.16), (0, 1, 0.84, 1)]
    else:
        for u0, v0, u1, v1 in ((0, 0, 1, 1), (1, 0, 0, 1), (0.5, 0, 0.5, 1)):
            scene.strip(at(block, u0, v0), at(block, u1, v1), 2.6, scene.style.soil, 50)
        places = [(rnd.uniform(0, 0.7), rnd.uniform(0, 0.6)) for _ in range(5)]
        groups = [(u, u + 0.28, v, v + 0.38) for u, v in places]
    for group in groups:
        scene.plant(part(block, *group), 130, 1.15)


def mark_pitch(scene: Scene, pitch: Quad) -> None:
    """A sports field: grass as the mower went, and lines."""
    for k in range(10):
        shade = 1.06 if k % 2 else 0.98
        grass = [c * shade for c in (92, 128, 72)]
        scene.paint(part(pitch, k / 10, (k + 1) / 10, 0, 1), grass, 50, 0.01)
    sides = ((0, 0, 1, 0), (0, 1, 1, 1), (0, 0, 0, 1), (1, 0, 1, 1))
    halfway_line = (0.5, 0, 0.5, 1)
    for u0, v0, u1, v1 in (*sides, halfway_line):
        scene.strip(at(pitch, u0, v0), at(pitch, u1, v1), 0.5)


FILL = {
    "houses": fill_houses,
    "perimeter": fill_perimeter,
    "packed": fill_packed,
    "slabs": fill_slabs,
    "rows": fill_rows,
    "towers": fill_towers,
}


def fill_block(scene: Scene, block: Quad) -> None:
    """What a block is built of: mostly the city's kind, seldom its second, a park or works."""
    draw = scene.rnd.random()
    if draw < 0.05:
        fill = fill_park
    elif draw < 0.08:
        fill = fill_works
    elif draw < 0.13:
        fill = FILL[scene.style.second]
    else:
        fill = FILL[scene.style.kind]
    fill(scene, block)


class Edge(NamedTuple):
    """A block's edge and the street along it."""

    start: complex  # of the edge, at the kerb
    end: complex
    middle_start: complex  # of the street's middle
    middle_end: complex
    half: float  # of the street's width
    before: float  # half the widths of the streets that cross it at its start
    after: float  # and at its end

    @property
    def ahead(self) -> complex:
        """The unit vector along the street."""
        return direction(self.middle_start, self.middle_end)

    @property
    def inwards(self) -> complex:
        """The unit vector from the street to the block."""
        return self.ahead * 1j


def line_streets(scene: Scene, cell: Plot, block: Quad) -> None:
    """Parked cars and trees along a block, markings and traffic on the streets around it."""
    corners, widths = cell
    for i in range(4):
        following = (i + 1) % 4
        edge = Edge(
            start=block[i],
            end=block[following],
            middle_start=corners[i],
            middle_end=corners[following],
            half=widths[i],
            before=widths[i - 1],
            after=widths[following],
        )
        off_kerb = 1.3 * edge.inwards
        scene.cars(edge.start - off_kerb, edge.end - off_kerb, scene.style.cars)
        if scene.style.trees > 12:
            plant_avenue(scene, edge)
        is_avenue = edge.half > 8
        if is_avenue and abs(edge.middle_end - edge.middle_start) > 40:
            mark_lanes(scene, edge)
        if i in (0, 3):  # what is in the middle of a street is drawn from one side only
            mark_middle(scene, edge)


def plant_avenue(scene: Scene, edge: Edge) -> None:
    """A row of trees inside the kerb."""
    rnd = scene.rnd
    ahead = edge.ahead
    pitch = rnd.uniform(9, 14)
    for k in range(int(abs(edge.end - edge.start) / pitch)):
        if rnd.random() < min(0.8, scene.style.trees / 60):
            scene.tree(edge.start + ahead * pitch * (k + 0.5) + edge.inwards, 0.85)


def mark_lanes(scene: Scene, edge: Edge) -> None:
    """The lanes of an avenue, and the traffic on them."""
    ahead = edge.ahead
    inwards = edge.inwards
    for k in range(int(abs(edge.end - edge.start) / 12)):
        dash = edge.start - inwards * edge.half * 0.5 + ahead * 12 * k
        scene.strip(dash, dash + ahead * 4, 0.2)
    lane = inwards * edge.half * 0.25
    share = 0.35 * scene.style.cars
    scene.cars(edge.middle_start + lane, edge.middle_end + lane, share, pitch=12)


def mark_middle(scene: Scene, edge: Edge) -> None:
    """The line in the middle of a street between two crossings, and an avenue's zebra crossing."""
    ahead = edge.ahead
    if edge.half > 4:
        step, dash, wide = (9, 4, 0.24) if edge.half < 8 else (20, 20, 0.6)
        first = edge.middle_start + ahead * (edge.before + 6)
        free = abs(edge.middle_end - edge.middle_start) - edge.before - edge.after - 12
        for k in range(int(free / step)):
            scene.strip(first + ahead * step * k, first + ahead * (step * k + dash), wide)
    if edge.half > 8:  # an avenue
        corner = edge.middle_start + ahead * (edge.before + 2.2)
        for k in range(int(edge.half * 2 / 1.3) - 2):
            bar = corner + edge.inwards * (k * 1.3 - edge.half + 1.8)
            scene.strip(bar, bar + ahead * 3, 0.55)


class Street(NamedTuple):
    """The middle of a street along a block, and half its width."""

    start: complex
    end: complex
    half: float


class Wave(NamedTuple):
    """A way in which streets wind."""

    start: float
    frequency: float
    way: complex


@dataclass
class Bend:
    """What carries points of the plane to the raster, metres from its middle."""

    turned: complex
    metres: float  # by which a wave moves a street
    waves: list[Wave]
    rings: Rings | None  # of a radial city

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Carry points to the raster."""
        if self.rings:
            points = self.rings.round_off(points)
        moves = 0
        for wave in self.waves:
            along_wave = (points * wave.way.conjugate()).real
            swing = np.sin(wave.start + wave.frequency * along_wave)
            moves = moves + self.metres * 1j * wave.way * swing
        return self.turned * (points + moves)


def lay_out(rnd: random.Random, style: Style, light: Light, half: float) -> tuple[Scene, Bend]:
    """Everything on a raster that reaches `half` metres from its middle.

    And what carries it from the plane to the raster.
    """
    lawn = [c * (1 - light.dry) + d * light.dry for c, d in zip(style.lawn, DRY_LAWN, strict=True)]
    scene = Scene(rnd, style, lawn)
    radius = half * 1.5 + 60
    centre = complex(rnd.uniform(-0.7, 0.7), rnd.uniform(-0.7, 0.7)) * half
    rings = None
    # The blocks are generated below, one after the other, and only then draw random numbers.
    if style.pattern == "radial":
        rings = radial_rings(rnd, style, radius, centre)
        blocks = rings.blocks(style)
        lay_circus(scene, centre, rings.rings[0].radius - style.avenue / 2)
    elif style.pattern == "grid":
        blocks = grid_blocks(rnd, style, radius)
    else:
        blocks = organic_blocks(rnd, style, radius)
    turned = np.exp(1j * math.radians(style.angle + rnd.uniform(-3, 3)))
    waves = [
        Wave(
            start=rnd.uniform(0, math.tau),
            frequency=math.tau / rnd.uniform(350, 800),
            way=np.exp(1j * rnd.uniform(0, math.tau)),
        )
        for _ in range(3)
    ]
    bend = Bend(turned, style.bend, waves, rings)
    river = lay_river(rnd, style, half)
    streets = []
    for cell in blocks:
        if is_on_raster(cell, bend, half) and lay_block(scene, cell):
            first, second, _, last = cell.corners
            streets.append(Street(first, second, cell.widths[0]))
            streets.append(Street(last, first, cell.widths[3]))
    if river:
        flood(scene, river, streets)
    return scene, bend


def lay_circus(scene: Scene, centre: complex, radius: float) -> None:
    """The round place in the middle of a radial city."""
    style = scene.style
    rnd = scene.rnd
    circle = np.exp(1j * np.arange(0, math.tau, 0.1))
    for share, colour in ((1, style.paving), (0.85, scene.lawn), (0.3, style.paving)):
        scene.paint(list(centre + share * radius * circle), colour, 80)
    for _ in range(40):
        away = radius * rnd.uniform(0.3, 0.8) * np.exp(1j * rnd.uniform(0, math.tau))
        scene.tree(centre + away)


def is_on_raster(cell: Plot, bend: Bend, half: float) -> bool:
    """Whether a block, or its shadow, may be seen on the raster."""
    middle = sum(cell.corners) / 4
    where = bend(np.array([middle]))[0]
    reach = max(abs(corner - middle) for corner in cell.corners) + 50
    return max(abs(where.real), abs(where.imag)) < half + reach


def lay_block(scene: Scene, cell: Plot) -> bool:
    """A block with its pavement and streets; False where these leave no room for it."""
    outer = inset(cell.corners, cell.widths)
    if outer is None:
        return False
    pavement = 1 if scene.style.kind == "packed" else scene.rnd.uniform(2, 3)
    block = inset(outer, [pavement] * 4)
    if block is None:
        return False
    scene.paint(dense(outer), scene.style.paving, 45)
    scene.yard(dense(block))
    fill_block(scene, block)
    line_streets(scene, cell, outer)
    return True


@dataclass
class River:
    """A river or canal from the left to the right end of the plane, metres."""

    half: float  # the raster's half
    wide: float  # half the water's width
    sway: float  # by which it winds
    middle: float
    start: float  # of the wave
    wave: float  # its length over 2 pi

    def course(self, x: np.ndarray) -> np.ndarray:
        """Where the middle of the water is."""
        large = self.sway * np.sin(x / self.wave + self.start)
        small = self.sway * 0.3 * np.sin(x / self.wave * 2.7)
        return self.middle + large + small

    def shore(self, points: np.ndarray) -> np.ndarray:
        """How far from the shore points are; negative in the water."""
        return np.abs(points.imag - self.course(points.real)) - self.wide

    def outline(self, more: float) -> list[complex]:
        """The outline of the water and so many metres around it."""
        x = np.linspace(-2 * self.half - 200, 2 * self.half + 200, 160)
        upper = x + 1j * (self.course(x) - self.wide - more)
        lower = x + 1j * (self.course(x) + self.wide + more)
        return [*upper, *lower[::-1]]


def lay_river(rnd: random.Random, style: Style, half: float) -> River | None:
    """The water of a raster; None if it has none."""
    if style.water == "none" or rnd.random() < 0.35:
        return None
    if style.water == "canal":
        wide = rnd.uniform(7, 10)
        sway = 0
    else:
        wide = rnd.uniform(14, 30)
        sway = rnd.uniform(15, 45)
    return River(
        half=half,
        wide=wide,
        sway=sway,
        middle=rnd.uniform(-0.6, 0.6) * half,
        start=rnd.uniform(0, math.tau),
        wave=rnd.uniform(80, 140),
    )


def flood(scene: Scene, river: River, streets: list[Street]) -> None:
    """Draw the water over the ground, take away what would stand in it, lead streets across."""
    scene.paint(river.outline(9), scene.lawn, 110)
    scene.paint(river.outline(1.2), scene.style.paving, 40)
    scene.paint(river.outline(0), (66, 84, 84), 14)
    for start, end, half in streets:
        away = river.shore(start + (end - start) * np.linspace(0, 1, 9))
        crosses = away[0] > 3 and away[-1] > 3 and away.min() < 0
        if crosses and (half > 6 or scene.rnd.random() < 0.35):
            scene.strip(start, end, 1.6 * half, (176, 174, 170), 30)
            scene.strip(start, end, 1.6 * half - 2.4, scene.style.asphalt, 30)
    corners = np.reshape([solid.corners for solid in scene.solids], (-1, 4)).T
    shares = (0, 0.5, 1)
    away = np.min([river.shore(at(corners, u, v)) for u in shares for v in shares], axis=0)
    scene.solids = [solid for solid, metres in zip(scene.solids, away, strict=True) if metres > 6]
    scene.trees = [tree for tree in scene.trees if river.shore(tree.centre) > 4]


# Drawing.


def cast_shadow(corners: np.ndarray, away: np.ndarray) -> np.ndarray:
    """What convex outlines (n, k) sweep over when they are moved by `away` (n,).

    Gives outlines (n, 2k).
    """
    following = np.roll(corners, -1, axis=1)
    area = (corners.conj() * following).imag.sum(axis=1, keepdims=True)
    outwards = (following - corners) * -1j * np.sign(area)
    leads = (outwards.conj() * away[:, None]).real > 0  # edges that face the way it moves
    before = corners + np.roll(leads, 1, axis=1) * away[:, None]
    after = corners + leads * away[:, None]
    return np.stack([before, after], axis=2).reshape(len(corners), 2 * corners.shape[1])


def facets(
    corners: np.ndarray, form: np.ndarray, colour: np.ndarray, sun: complex
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is seen of each building from above: corners (n, 4), form (n,), colour (n, 3).

    Gives outlines (n, 4, 4), their colours (n, 4, 3) and how many of the four are used (n,).
    """
    is_hip = form == "hip"
    is_flat = form == "flat"
    is_plain = form == "plain"
    is_car = form == "car"
    is_level = is_flat | is_car | is_plain
    quad = tuple(corners.T)
    c0, c1, c2, c3 = quad

    # Pitched roofs: four slopes to the ridge, which is shorter on a hip roof.
    hip = np.minimum(0.45, np.abs(c3 - c0) / 2 / np.maximum(np.abs(c1 - c0), 0.1))
    hip = np.where(is_hip, hip, 0)
    a = at(quad, hip, 0.5)
    b = at(quad, 1 - hip, 0.5)
    slopes = ((c0, c1, b, a), (c2, c3, a, b), (c1, c2, b, b), (c3, c0, a, a))
    outline = np.stack([np.stack(slope, axis=1) for slope in slopes], axis=1)
    down = np.stack(
        [c0 + c1 - c2 - c3, c2 + c3 - c0 - c1, c1 + c2 - c0 - c3, c0 + c3 - c1 - c2], axis=1
    )
    lit = 1 + 0.24 * (down / np.maximum(np.abs(down), 1e-9) * np.conj(sun)).real

    # What is level: the whole, and on it what lies inside the parapet, or a car's windscreen.
    du = np.minimum(0.2, 0.45 / np.maximum(np.abs(c1 - c0), 0.1))
    dv = np.minimum(0.2, 0.45 / np.maximum(np.abs(c3 - c0), 0.1))
    inner = part(
        quad,
        np.where(is_car, 0.28, du),
        np.where(is_car, 0.45, 1 - du),
        np.where(is_car, 0.1, dv),
        np.where(is_car, 0.9, 1 - dv),
    )
    outline[is_level, 0] = corners[is_level]
    outline[is_level, 1] = np.stack(inner, axis=1)[is_level]
    lit[is_level, 0] = 1
    lit[is_flat, 0] = 1.16
    lit[is_level, 1] = 1
    lit[is_car, 1] = 0.4
    used = np.select([is_hip, is_plain], [4, 1], 2)
    return outline, np.clip(colour[:, None, :] * lit[:, :, None], 0, 255), used


def crown(
    rng: np.random.Generator, radius: float, colour: Colour, sun: complex
) -> tuple[Image.Image, Image.Image]:
    """A tree from above as a stamp and its mask: lumps of leaves, lit from the sun's side."""
    n = int(radius * 2.4) + 3
    lumps = max(7, int(radius * 1.2))
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    height = np.zeros((n, n))
    for k in range(lumps):
        r = radius * rng.uniform(0.28, 0.48)
        angle = k * 2.4 + rng.uniform(0, 0.6)
        centre = (radius - r) * math.sqrt(k / lumps) * np.exp(1j * angle)
        squared = (x - centre.real) ** 2 + (y - centre.imag) ** 2
        lump = np.sqrt(np.maximum(r * r - squared, 0)) + 0.7 * (radius - abs(centre))
        height = np.maximum(height, np.where(squared < r * r, lump, 0))
    gy, gx = np.gradient(height)
    slope = -(gx * sun.real + gy * sun.imag) / np.sqrt(1 + gx**2 + gy**2)
    light = np.clip(1.0 + 0.42 * slope + rng.normal(0, 0.07, (n, n)), 0.35, 1.6)
    hue = np.array(colour) * rng.uniform(0.8, 1.2) + rng.uniform(-9, 9) * np.array([1, 0.2, 0.3])
    pixels = np.clip(hue * light[:, :, None], 0, 255)
    stamp = np.dstack([pixels, np.full((n, n), 60)]).astype(np.uint8)
    mask = (height > 0).astype(np.uint8) * 255
    return Image.frombytes(CANVAS, (n, n), stamp.tobytes()), Image.fromarray(mask)


def flat_lists(outlines: np.ndarray, top: int) -> list[list[float]]:
    """Complex outlines (n, k) as lists x, y, x, y ... on a canvas whose first row is `top`."""
    return np.ascontiguousarray(outlines - 1j * top).view(float).tolist()


def with_fourth(colour: np.ndarray, roughness: np.ndarray | int) -> np.ndarray:
    """Colours (..., 3) with the roughness as a fourth channel."""
    fourth = np.broadcast_to(roughness, colour.shape[:-1] + (1,))
    return np.concatenate([colour, fourth], axis=-1).astype(int)


@dataclass
class Projection:
    """From metres on the plane to pixels of the canvas, which is FINE times the raster."""

    bend: Bend
    light: Light
    middle: complex  # of the canvas
    scale: float = FINE / METRES  # pixels a metre

    def points(self, points: np.ndarray) -> np.ndarray:
        """Where points are on the canvas."""
        return self.bend(points) * self.scale + self.middle

    def outlines(self, outlines: Sequence[Sequence[complex]]) -> list[np.ndarray]:
        """Where outlines of any number of points are on the canvas."""
        points = self.points(np.array([p for outline in outlines for p in outline], complex))
        return np.split(points, np.cumsum([len(outline) for outline in outlines])[:-1])

    @property
    def shadow(self) -> complex:
        """How far a metre of height throws its shadow."""
        return -self.light.sun * self.light.reach * self.scale


@dataclass
class GroundLayer:
    """The ground on the canvas."""

    outlines: list[np.ndarray]
    spans: np.ndarray  # (n, 2): first and last row
    inks: list[tuple[int, ...]]

    def between(self, first: int, last: int) -> np.ndarray:
        """Numbers of what reaches into these rows."""
        return np.flatnonzero((self.spans[:, 1] >= first) & (self.spans[:, 0] < last))


@dataclass
class SolidLayer:
    """Buildings and cars on the canvas."""

    steps: np.ndarray  # (n,): height in steps, see draw_band
    walls: np.ndarray  # outlines (n, 8)
    wall_colours: np.ndarray  # (n, 4)
    shadows: np.ndarray  # outlines (n, 8)
    facets: np.ndarray  # outlines (n, 4, 4)
    facet_colours: np.ndarray  # (n, 4, 4)
    used: np.ndarray  # (n,): how many of a building's facets there are


@dataclass
class TreeLayer:
    """Trees on the canvas."""

    steps: np.ndarray  # (n,)
    centres: np.ndarray  # (n,)
    crowns: np.ndarray  # outlines (n, 10)
    shadows: np.ndarray  # outlines (n, 20)
    stamps: list[tuple[Image.Image, Image.Image]]


STEP = 3  # metres


@dataclass
class Layers:
    """All that is drawn, from below."""

    asphalt: Colour
    ground: GroundLayer
    solids: SolidLayer
    trees: TreeLayer


def project_ground(scene: Scene, projection: Projection) -> GroundLayer:
    """The ground on the canvas."""
    outlines = projection.outlines([ground.outline for ground in scene.ground])
    spans = np.array([(outline.imag.min(), outline.imag.max()) for outline in outlines])
    inks = [
        (*(int(min(255, c)) for c in ground.colour), ground.roughness) for ground in scene.ground
    ]
    return GroundLayer(outlines, spans, inks)


def project_solids(scene: Scene, projection: Projection) -> SolidLayer:
    """Buildings and cars on the canvas."""
    light = projection.light
    top = np.array([solid.top for solid in scene.solids], float)
    above = np.array([solid.above for solid in scene.solids], float)
    form = np.array([solid.form for solid in scene.solids], str)
    colour = np.array([solid.colour for solid in scene.solids], float).reshape(-1, 3)
    feet = projection.outlines([solid.corners for solid in scene.solids])
    stands_on = (top - above) * light.lean * projection.scale
    feet = np.reshape(feet, (-1, 4)) + stands_on[:, None]
    leaning = above * light.lean * projection.scale
    outlines, colours, used = facets(feet + leaning[:, None], form, colour, light.sun)
    walls = np.clip(colours[:, 0] * 0.5 + 45, 0, 255)
    return SolidLayer(
        steps=(top / STEP).astype(int),
        walls=cast_shadow(feet, leaning),
        wall_colours=with_fourth(walls, 40),
        shadows=cast_shadow(feet, projection.shadow * above),
        facets=outlines,
        facet_colours=with_fourth(colours, np.where(form == "flat", 64, 40)[:, None, None]),
        used=used,
    )


def project_trees(scene: Scene, projection: Projection, rng: np.random.Generator) -> TreeLayer:
    """Trees on the canvas: of 14 sizes, with eight stamps of each."""
    light = projection.light
    scale = projection.scale
    radius = np.array([tree.radius for tree in scene.trees], float)
    height = np.array([tree.height for tree in scene.trees], float)
    centres = projection.points(np.array([tree.centre for tree in scene.trees], complex))
    leaf = [
        lush * (1 - 0.35 * light.dry) + dry * 0.35 * light.dry
        for lush, dry in zip(scene.style.leaf, DRY_LEAF, strict=True)
    ]
    sizes = np.linspace(1, max(radius.max(initial=2), 2), 14)
    stamps = [[crown(rng, size * scale, leaf, light.sun) for _ in range(8)] for size in sizes]
    size_of_tree = np.abs(sizes - radius[:, None]).argmin(axis=1)
    stamp_of_tree = rng.integers(0, 8, len(radius))
    circle = np.exp(1j * np.arange(10) * math.tau / 10)
    crowns = centres[:, None] + radius[:, None] * scale * 0.92 * circle
    return TreeLayer(
        steps=(height / STEP).astype(int),
        centres=centres,
        crowns=crowns,
        shadows=cast_shadow(crowns, projection.shadow * height * 0.75),
        stamps=[stamps[i][j] for i, j in zip(size_of_tree, stamp_of_tree, strict=True)],
    )


def reaches(outlines: np.ndarray, first: int, last: int) -> np.ndarray:
    """Which of the outlines (n, k) reach into these rows of the canvas."""
    return (outlines.imag.max(axis=1) >= first) & (outlines.imag.min(axis=1) < last)


def draw(
    scene: Scene, bend: Bend, light: Light, px: int, rng: np.random.Generator
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The scene band by band.

    Gives a band's first row, its colours and roughness (rows, px, 4), and its shadow (rows, px).
    """
    projection = Projection(bend, light, middle=(1 + 1j) * px * FINE / 2)
    layers = Layers(
        scene.style.asphalt,
        project_ground(scene, projection),
        project_solids(scene, projection),
        project_trees(scene, projection, rng),
    )
    for first in range(0, px, BAND):
        rows = min(BAND, px - first)
        image, mask = draw_band(layers, px * FINE, first * FINE, (first + rows) * FINE)
        pixels = np.asarray(image.resize((px, rows), Image.BILINEAR))
        shadow = np.asarray(mask.resize((px, rows), Image.BILINEAR))
        yield first, pixels, shadow


def draw_band(layers: Layers, width: int, first: int, last: int) -> tuple[Image.Image, Image.Image]:
    """The rows first ... last - 1 of the canvas: what is there, and where shadow lies.

    From low to high in steps of 3 m: all the shadows of a step, then its roofs and crowns, which
    clear away what lower things have thrown on them. So towers shade the roofs below, and
    neighbours of one height leave each other alone.
    """
    ground = layers.ground
    solids = layers.solids
    trees = layers.trees
    image = Image.new(CANVAS, (width, last - first), (*layers.asphalt, 40))
    mask = Image.new("L", image.size, 0)
    pen = ImageDraw.Draw(image)
    dark = ImageDraw.Draw(mask)
    for i in ground.between(first, last):
        pen.polygon(flat_lists(ground.outlines[i], first), fill=ground.inks[i])
    solids_here = reaches(np.hstack([solids.shadows, solids.walls]), first, last)
    trees_here = reaches(trees.shadows, first, last)
    for step in sorted(set(solids.steps[solids_here]) | set(trees.steps[trees_here])):
        some_solids = np.flatnonzero(solids_here & (solids.steps == step))
        some_trees = np.flatnonzero(trees_here & (trees.steps == step))
        for points in flat_lists(solids.shadows[some_solids], first):
            dark.polygon(points, fill=255)
        for points in flat_lists(trees.shadows[some_trees], first):
            dark.polygon(points, fill=255)
        draw_solids(pen, dark, solids, some_solids, first)
        for points in flat_lists(trees.crowns[some_trees], first):
            dark.polygon(points, fill=0)
        for i in some_trees:
            stamp, shape = trees.stamps[i]
            left = int(trees.centres[i].real - stamp.width / 2)
            top = int(trees.centres[i].imag - first - stamp.height / 2)
            image.paste(stamp, (left, top), shape)
    return image, mask


def draw_solids(
    pen: ImageDraw.ImageDraw,
    dark: ImageDraw.ImageDraw,
    solids: SolidLayer,
    which: np.ndarray,
    first: int,
) -> None:
    """Draw walls, which clear the shadow away, and then what is seen of the buildings from above.

    pen, dark: of the colours and of the shadow. first: row of the canvas where the band begins.
    """
    walls = flat_lists(solids.walls[which], first)
    for points, ink in zip(walls, solids.wall_colours[which].tolist(), strict=True):
        dark.polygon(points, fill=0)
        pen.polygon(points, fill=tuple(ink))
    outlines = flat_lists(solids.facets[which].reshape(-1, 16), first)
    colours = solids.facet_colours[which].tolist()
    for points, inks, used in zip(outlines, colours, solids.used[which].tolist(), strict=True):
        for k in range(used):
            pen.polygon(points[8 * k : 8 * k + 8], fill=tuple(inks[k]))


def smooth(
    rng: np.random.Generator, px: int, cell: int, spread: float
) -> Callable[[int, int], np.ndarray]:
    """Smooth noise with features of `cell` pixels.

    A function that gives some rows of it, the same whatever the bands: (first, rows) to
    (rows, px).
    """
    n = px // cell + 4
    knots = Image.fromarray(rng.normal(0, spread, (n, n)).astype(np.float32))

    def some(first, rows):
        box = (1, 1 + first / cell, 1 + px / cell, 1 + (first + rows) / cell)
        return np.asarray(knots.resize((px, rows), Image.BICUBIC, box=box))

    return some


class Lighting:
    """Texture of surfaces, light that changes across a raster, and shadows."""

    def __init__(self, rng: np.random.Generator, px: int, light: Light):
        self.rng = rng
        self.textures = [
            smooth(rng, px, cell, spread)
            for cell, spread in ((3, 0.45), (9, 0.5), (32, 0.6), (150, 0.6))
        ]
        self.cloud = smooth(rng, px, 450, 0.13)
        self.warmth = smooth(rng, px, 450, 0.045)
        # Shadows are bluish: the sky lights them.
        self.shade = 1 - light.shade * np.array([0.92, 1.0, 1.14], np.float32)

    def lit(self, first: int, pixels: np.ndarray, shadow: np.ndarray) -> np.ndarray:
        """A band as draw() gives it to uint8 (rows, px, 3) in the light of the site."""
        rows, px = shadow.shape
        grain = self.rng.integers(-110, 111, (rows, px), dtype=np.int8) * np.float32(0.28 / 64)
        noise = grain + sum(texture(first, rows) for texture in self.textures)
        noise *= pixels[:, :, 3] * np.float32(0.2 / 128)
        dim = shadow * np.float32(1 / 255)
        bright = np.exp(self.cloud(first, rows))
        warm = self.warmth(first, rows)
        result = np.empty((rows, px, 3), np.uint8)
        for c, strength in enumerate((1.07, 1.0, 0.95)):
            colour_cast = 1 + (1 - c) * warm
            gain = bright * colour_cast * (1 + noise * strength) * (1 - dim * self.shade[c])
            result[:, :, c] = np.clip(pixels[:, :, c] * gain + 0.5, 0, 255)
        return result


def tone_curves(light: Light, mean: np.ndarray) -> list[int]:
    """Three tables of 256 bytes: exposure, contrast, colour cast and haze.

    mean: of the raster's red, green and blue, 0 to 1.
    """
    x = np.arange(256) / 255
    curves = []
    for cast, haze, own_mean in zip(light.cast, light.haze_colour, mean, strict=True):
        # Exposure, and half of the white balance, are automatic.
        y = x * 0.42 / (0.5 * own_mean + 0.5 * np.mean(mean)) * cast
        y = light.exposure * (1 + (y / 0.42 - 1) * light.contrast)
        y = y * (1 - light.haze) + haze * light.haze
        y = np.where(y > 0.72, 0.72 + 0.26 * np.tanh((y - 0.72) / 0.26), y)  # bright roofs saturate
        curves.append(np.clip(np.rint(y * 255), 0, 255).astype(np.uint8))
    return np.concatenate(curves).tolist()


def saturation_matrix(vivid: float) -> tuple[float, ...]:
    """Pillow's matrix (3, 4) that leaves this share of a colour's difference from grey."""
    grey = (1 - vivid) / 3
    return tuple(
        0 if column == 3 else grey + vivid * (row == column)
        for row in range(3)
        for column in range(4)
    )


def render(
    seed: int,
    city: int,
    site: int,
    raster: int,
    px: int,
    how: Differences = USUAL,
) -> Image.Image:
    """One raster as an RGB image of px by px pixels. city, site, raster: their numbers from 0."""
    style = drawn_style(seed, city, how)
    light = site_light(seed, city, site, how.light)
    rnd = random.Random(f"raster {seed} {city} {site} {raster}")
    scene, bend = lay_out(rnd, style, light, px * METRES / 2)
    rng = np.random.default_rng(rnd.getrandbits(64))
    lighting = Lighting(rng, px, light)
    picture = Image.new("RGB", (px, px))
    for first, pixels, shadow in draw(scene, bend, light, px, rng):
        picture.paste(Image.fromarray(lighting.lit(first, pixels, shadow)), (0, first))
    mean = np.asarray(picture.reduce(8)).mean(axis=(0, 1)) / 255
    picture = picture.convert("RGB", saturation_matrix(light.vivid))
    picture = picture.point(tone_curves(light, mean))
    sensor = sensor_of(seed, city, site, how)
    return picture if sensor is None else picture.convert("RGB", sensor)


def write(path: Path, *what: int | Differences) -> None:
    """Draw one raster and write it: what has the final name is complete.

    what: the arguments of render().
    """
    jpeg = io.BytesIO()
    render(*what).save(jpeg, "JPEG", quality=90)
    with atomic(path, sync=False) as file:
        file.write(jpeg.getbuffer())


def city_names(count: int) -> list[str]:
    """`Name (CODE)` for so many cities: NAMES, then syllables put together."""
    names = list(NAMES)
    codes = {name[-4:-1] for name in NAMES}
    rnd = random.Random("names")
    while len(names) < count:
        name = "".join(rnd.choice(syllables.split()) for syllables in SYLLABLES)
        # No second letter of the codes in cities.csv.
        code = name[0] + rnd.choice("JWXZ") + rnd.choice("BDFGHKLMNPRSTVZ")
        if code not in codes and name not in {other[:-6] for other in names}:
            codes.add(code)
            names.append(f"{name} ({code})")
    return names[:count]


class Number(NamedTuple):
    """A flag that takes a whole number."""

    default: int
    least: int
    most: int
    meaning: str


# A square of more pixels is refused by Pillow, with which preprocessing.py reads it.
LARGEST = math.isqrt(2 * Image.MAX_IMAGE_PIXELS)

NUMBERS = {
    "cities": Number(6, 1, 100, "cities; preprocessing.py takes two or more"),
    "sites": Number(3, 2, 99, "sites of each city; the last one is held out, so two are needed"),
    "rasters": Number(1, 1, 999, "rasters of each site"),
    "size": Number(
        2400,
        480,
        LARGEST,
        "pixels a side, twice a patch at least, since held-out rasters are halved; the published"
        " rasters have 4800",
    ),
    "seed": Number(0, 0, 2**31 - 1, "another seed, other cities"),
    "alike": Number(
        1, 1, 100, "cities in a group that share kind of building, street pattern and roofs"
    ),
    "workers": Number(machine.available_cores(), 1, 1024, "processes"),
}


def read_flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the flags; InputError if they are wrong."""
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/raw"), help="folder to write to")
    for name, (default, least, most, meaning) in NUMBERS.items():
        parser.add_argument(
            f"--{name}",
            type=number(least=least, most=most),
            default=default,
            help=f"{meaning}; {least} to {most}",
        )
    parser.add_argument(
        "--light",
        type=number(float, least=0, most=3),
        default=1.0,
        help="how much light and season differ between sites; 0 to 3",
    )
    add_truth(parser)
    args = parser.parse_args(argv)
    if args.twins == []:  # the flag without a number
        args.twins = [2]
    if sum(args.twins) > args.cities:
        parser.error(
            f"--twins: of {sum(args.twins)} cities, but there are {args.cities} (--cities)"
        )
    if args.one_style and args.twins:
        parser.error("--twins: with --one-style all cities are twins already")
    return args


def add_truth(parser: argparse.ArgumentParser) -> None:
    """Add the flags of sets whose truth is known."""
    known = parser.add_argument_group("sets whose truth is known")
    known.add_argument(
        "--twins",
        type=number(least=2, most=100),
        nargs="*",
        default=(),
        metavar="N",
        help="draw the first two cities, or the first N, by one style, then the next N by one, and"
        " so on: these differ in nothing",
    )
    known.add_argument(
        "--one-style",
        choices=ONE_STYLE,
        nargs="?",
        const=ONE_STYLE[0],
        help="draw all cities by one style: they differ in nothing; turned: in nothing but the"
        " direction of their streets",
    )
    known.add_argument(
        "--sensors",
        choices=SENSORS,
        default=SENSORS[0],
        help="city: each city's colours are those of a sensor of its own, at all its sites; site:"
        " one site of each city, not the last, has a sensor of its own",
    )


def list_jobs(args: argparse.Namespace) -> list[tuple]:
    """The arguments of write() for each raster."""
    how = Differences(args.alike, args.light, args.twins, args.one_style, args.sensors, args.sites)
    return [
        (
            args.out / name / f"site{site + 1:02d}" / f"{2020 + raster}.jpg",
            args.seed,
            city,
            site,
            raster,
            args.size,
            how,
        )
        for city, name in enumerate(city_names(args.cities))
        for site in range(args.sites)
        for raster in range(args.rasters)
    ]


def describe_truth(args: argparse.Namespace) -> Iterator[str]:
    """Say what is known of how the cities differ, a line a fact."""
    names = city_names(args.cities)
    start = 0
    for count in args.twins:
        *others, last = names[start : start + count]
        start += count
        yield f"drawn alike on purpose: {', '.join(others)} and {last}"
    if args.one_style == "same":
        yield "all cities are drawn by one style: what is built does not tell them apart"
    if args.one_style == "turned":
        yield "all cities are drawn by one style and differ by the direction of their streets alone"
    if args.sensors == "city":
        yield "each city has a sensor of its own, the same at all its sites"
    if args.sensors == "site":
        yield "these sites have a sensor of their own:"
        for city, name in enumerate(names):
            yield f"  {name}/site{odd_site(city, args.sites) + 1:02d}"


def draw_all(jobs: list[tuple], workers: int) -> None:
    """Write all rasters, in so many processes; after a fault or Ctrl-C they end at once."""
    workers = min(workers, len(jobs))
    with (
        ProcessPoolExecutor(workers, machine.worker_processes(), machine.follow_parent) as pool,
        tqdm(total=len(jobs), unit="raster", disable=None) as bar,
    ):
        try:
            with machine.interrupts_blocked():  # workers, which are started in here, inherit that
                drawn = [pool.submit(write, *job) for job in jobs]
            for future in as_completed(drawn):
                future.result()
                bar.update()
        except BaseException:
            for process in multiprocessing.active_children():
                process.kill()
            raise


def clear_folders(jobs: list[tuple]) -> None:
    """Remove what processes that were killed while they wrote left beside the rasters."""
    names = {path.name for path, *_ in jobs}
    for folder in {path.parent for path, *_ in jobs}:
        clear_leftovers(folder, names)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the sample that the command line asks for."""
    args = read_flags(argv)
    start = time.time()
    jobs = list_jobs(args)
    with hold(args.out):
        clear_folders(jobs)
        try:
            draw_all(jobs, args.workers)
        except (BrokenProcessPool, MemoryError):
            raise InputError(
                "a process was ended from outside or found no memory; run the same command again"
                " with fewer --workers or a smaller --size"
            ) from None
        except KeyboardInterrupt:
            sys.exit(
                "interrupted; every raster in the folder is whole, the next call draws all anew"
            )
        finally:
            clear_folders(jobs)
    rasters = {path for path in args.out.rglob("*.jpg") if not path.name.startswith(".")}
    others = rasters - {job[0] for job in jobs}
    if others:
        print(
            f"note: {printable(args.out)} holds {len(others)} more rasters that this call did not"
            f" write, such as {printable(min(others))}"
        )
    print(
        f"{len(jobs)} rasters of {args.size} x {args.size} pixels in {printable(args.out)},"
        f" {time.time() - start:.0f} s"
    )
    for line in describe_truth(args):
        print(line)


if __name__ == "__main__":
    run(main)
