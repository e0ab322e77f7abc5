"""How often do intervals over sites hold the truth, and how wide are they?

    python -m benchmarks.site_intervals [--simulations 2000] [--json FILE]

Draws cities, sites within them and rasters within these, each with an effect on the logit of being
right, and the patches of each raster; the truth is the mean over all sites that the cities could
have. Prints a line for each of the circumstances: the share of overall intervals that held it, of
those in which every city weighs alike, and of the cities' own; mean widths over that of +- 1.96
true standard deviations; and in how many of 100 cross-validations a site that is none is called an
odd one out. docs/statistics.md has the figures.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import optimize, special

from dl_slicer.cli import Parser, number, run
from dl_slicer.results import odd_sites, site_intervals
from dl_slicer.results.intervals import RasterCounts

CITY_SPREAD = 0.7  # standard deviations on the logit
RASTER_SPREAD = 0.4
RASTERS = 4  # of a site
PATCHES = 342  # of a raster that is held out
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(41)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True)
class Circumstances:
    """What is simulated. fewer: how many of the cities have other numbers of sites, and which."""

    cities: int
    sites: int
    accuracy: float
    site_spread: float
    fewer: tuple[int, int] = (0, 0)

    @property
    def sites_of_city(self) -> np.ndarray:
        """The number of sites of each city: (cities,)."""
        sites = np.full(self.cities, self.sites)
        sites[: self.fewer[0]] = self.fewer[1]
        return sites


def all_circumstances() -> list[Circumstances]:
    """Give what is simulated, the usual first."""
    usual = [
        Circumstances(cities, sites, accuracy, spread)
        for cities in (4, 45)
        for sites in (3, 6)
        for accuracy in (0.8, 0.95)
        for spread in (0.3, 0.6, 1.0)
    ]
    odd = [
        Circumstances(cities, 3, accuracy, 0.6, fewer)
        for cities in (4, 45)
        for accuracy in (0.8, 0.95)
        for fewer in ((cities // 3, 2), (1, 1))
    ]
    return usual + odd


def logit_of_mean(accuracy: float, spread: float) -> float:
    """Give the mean logit with which the mean accuracy of a population is this one."""

    def excess(logit: float) -> float:
        return WEIGHTS @ special.expit(logit + spread * NODES) - accuracy

    return optimize.brentq(excess, -20, 20)


def truths(logits: np.ndarray, site_spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Give each city's mean accuracy over all its possible sites, and the variance of one site.

    logits (C,); by Gauss-Hermite quadrature over the effects of sites and of rasters.
    """
    of_site = logits[:, None, None] + site_spread * NODES[:, None]
    of_raster = special.expit(of_site + RASTER_SPREAD * NODES)
    site = of_raster @ WEIGHTS
    mean = site @ WEIGHTS
    between_rasters = ((of_raster**2 @ WEIGHTS - site**2) @ WEIGHTS) / RASTERS
    of_patches = ((of_raster * (1 - of_raster)) @ WEIGHTS @ WEIGHTS) / (RASTERS * PATCHES)
    return mean, site**2 @ WEIGHTS - mean**2 + between_rasters + of_patches


def simulate(given: Circumstances, simulations: int, seed: int = 0) -> dict[str, float]:
    """Draw so many cross-validations; give the shares and widths as the module says."""
    rng = np.random.default_rng(seed)
    total_spread = np.sqrt(CITY_SPREAD**2 + given.site_spread**2 + RASTER_SPREAD**2)
    middle = logit_of_mean(given.accuracy, total_spread)
    sites = given.sites_of_city
    city = np.repeat(np.arange(given.cities), sites)
    site = np.repeat(np.arange(len(city)), RASTERS)
    patches = np.full(len(site), float(PATCHES))
    held = np.zeros(2)
    widths = np.zeros((2, 2))  # those found, and those of the true variance
    of_cities = []
    alarms = 0
    for _ in range(simulations):
        logits = middle + CITY_SPREAD * rng.standard_normal(given.cities)
        mean, variance = truths(logits, given.site_spread)
        of_site = logits[city] + given.site_spread * rng.standard_normal(len(city))
        of_raster = of_site[site] + RASTER_SPREAD * rng.standard_normal(len(site))
        right = rng.binomial(PATCHES, special.expit(of_raster)).astype(float)
        rasters = RasterCounts(city[site], patches, right)
        counts = RasterCounts(city, np.bincount(site, patches), np.bincount(site, right))
        for k, weight in enumerate((sites / sites.sum(), np.full(given.cities, 1 / given.cities))):
            _, (low, high) = site_intervals.overall_interval(counts, given.cities, alike=k == 1)
            held[k] += low <= weight @ mean <= high
            true_width = 2 * 1.96 * np.sqrt(weight**2 @ (variance / sites))
            widths[k] += high - low, true_width
        own = site_intervals.city_intervals(counts, given.cities)
        of_cities += [
            ends[0] <= truth <= ends[1] for ends, truth in zip(own, mean, strict=True) if ends
        ]
        alarms += any(odd_sites.find(rasters, site))
    return {
        "held": float(held[0] / simulations),
        "width": float(widths[0, 0] / widths[0, 1]),
        "held_alike": float(held[1] / simulations),
        "width_alike": float(widths[1, 0] / widths[1, 1]),
        "held_by_cities": float(np.mean(of_cities)),
        "false_alarms": alarms / simulations,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate all circumstances and print a line of each."""
    parser = Parser(__doc__)
    parser.add_argument("--simulations", type=number(least=1), default=2000)
    parser.add_argument("--json", type=Path, help="also write the figures into this file")
    args = parser.parse_args(argv)
    print("cities sites accuracy spread fewer      held width  alike: held width  cities  alarms")
    all_found = []
    for given in all_circumstances():
        found = simulate(given, args.simulations)
        all_found.append(vars(given) | found)
        print(
            f"{given.cities:6} {given.sites:5} {given.accuracy:8} {given.site_spread:6}"
            f" {given.fewer!s:8} {found['held']:7.1%} {found['width']:5.2f}"
            f" {found['held_alike']:12.1%} {found['width_alike']:5.2f}"
            f" {found['held_by_cities']:7.1%} {found['false_alarms']:7.1%}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(all_found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    run(main)
