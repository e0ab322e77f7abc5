"""What the section on cues tells: what is lost without each, and how far colour alone goes."""

from dataclasses import dataclass

from dl_slicer.report.cues_files import CueRow, Cues
from dl_slicer.report.records import Picture, Results


@dataclass(frozen=True)
class CuesView:
    """The files, and what stands out in them."""

    found: Cues
    grey: CueRow | None
    most_lost: CueRow | None  # of the rows that lose clearly, also when fitted anew
    lost: int  # rows whose interval of the fitted-anew difference lies below 0
    open: int  # rows whose interval holds 0
    verdict: str  # on colour alone: "better", "worse", "not better", "not known"
    picture: Picture | None


def cues(results: Results) -> CuesView | None:
    """Pick what the text names; None where --cues was not asked for."""
    found = results.cues
    if found is None:
        return None
    with_interval = [row for row in found.rows if row.refitted.interval]
    lost = [row for row in with_interval if row.refitted.interval[1] < 0]
    in_both = [row for row in lost if row.shown.interval and row.shown.interval[1] < 0]
    held = [
        row for row in with_interval if row.refitted.interval[0] <= 0 <= row.refitted.interval[1]
    ]
    return CuesView(
        found=found,
        grey=next((row for row in found.rows if row.altered == "grey"), None),
        most_lost=min(in_both, key=lambda row: row.refitted.difference, default=None),
        lost=len({row.altered for row in lost}),
        open=len({row.altered for row in held}),
        verdict=verdict(found.colour_alone.difference_interval),
        picture=results.cues_picture,
    )


def verdict(interval: tuple[float, float] | None) -> str:
    """Say what the paired interval of the network less colour alone says of the two."""
    if interval is None:
        return "not known"
    low, high = interval
    if low > 0:
        return "better"
    return "worse" if high < 0 else "not better"
