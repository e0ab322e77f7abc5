"""Which rasters make up a set, in which sites, cut where: settled before any of them is tiled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dl_slicer.patch_sets import finding, mosaics, on_disk, overlaps, sites
from dl_slicer.patch_sets.jobs import Job, Request
from dl_slicer.patch_sets.survey import Survey


@dataclass(frozen=True)
class Arrangement:
    """A job for each raster, and what was found out of where they lie."""

    jobs: list[Job]
    sites: Mapping[str, str]  # {raster: site} of sites that were found by place
    facts: Mapping[str, Any]  # for dataset.json; empty where no raster has a georeference
    survey: Survey

    def remember(self, request: Request) -> None:
        """Write into the patch set what later runs must not decide anew."""
        if not on_disk.has_arrays(request.out):
            return  # nothing could be begun there: what has no record looks like somebody else's
        sites.save(request.out, self.sites)
        self.survey.save()


def arrange(request: Request) -> Arrangement:
    """Find the rasters and settle their sites and splits; InputError if that cannot be.

    Nothing is written but what joins tiles: a set whose rasters overlap across splits is refused
    before the first of them is tiled.
    """
    survey = Survey(request)
    by_place: dict[str, str] = {}

    def find_sites(flat) -> Mapping[str, str]:
        by_place.update(sites.assign(request, survey, flat))
        return by_place

    is_asked = request.sites is not None or sites.load(request.out)
    jobs = finding.find_rasters(
        request.raw,
        request.out,
        find_sites if is_asked else None,
        request.held_out,
        request.val,
    )
    has_mosaics = request.mosaic or mosaics.has_any(request.out)
    if has_mosaics:
        jobs = mosaics.join(request, survey, jobs)
    found = survey.look((job.raster, job.stamp) for job in jobs)
    if not found:
        return Arrangement(jobs, by_place, {}, survey)
    jobs = overlaps.cut_at_common_lines(survey, jobs, found)
    pieces = [
        piece
        for job in jobs
        if job.raster in found
        for piece in overlaps.pieces_of(job, found[job.raster], request.settings)
    ]
    overlaps.check_halves(request, jobs, pieces)
    facts = {
        "sites": sites.most_sites(by_place) if by_place else None,
        "mosaic": has_mosaics,
        "allow_overlap": overlaps.refuse_overlaps(request, survey, pieces),
        "held_out_distance": sites.held_out_distances(survey, jobs, found),
    }
    return Arrangement(jobs, by_place, facts, survey)
