"""How numbers and names are put into words: the filters of the templates."""

import base64
import unicodedata
from collections.abc import Sequence

NOTHING = "–"
MINUS = "\u2212"
NO_BREAK = "\u00a0"
NARROW_NO_BREAK = "\u202f"
REPLACEMENT = "\ufffd"


def percent(share: float | None) -> str:
    """Give a share (0 to 1) in per cent; a dash where there is none."""
    return NOTHING if share is None else f"{100 * share:.1f}{NO_BREAK}%"


def interval(ends: Sequence[float]) -> str:
    """Give both ends of an interval (shares, 0 to 1) in per cent."""
    low, high = ends
    return f"{100 * low:.1f} to {100 * high:.1f}{NO_BREAK}%"


def points(share: float) -> str:
    """Give a difference of shares in percentage points."""
    return f"{100 * share:.1f}".replace("-", MINUS)


def count(number: int, one: str, many: str | None = None) -> str:
    """Give a number and what it counts; `many` is the plural where it is not `one` + s."""
    noun = one if number == 1 else many or one + "s"
    return f"{number:,}{NO_BREAK}{noun}".replace(",", NARROW_NO_BREAK)


def network_name(arch: str) -> str:
    """Give the name that papers use for an architecture: ResNet-50 for resnet50."""
    return arch.replace("resnet", "ResNet-")


def replace_unprintable(text: str) -> str:
    """Replace what HTML has no place for: control characters but line breaks, half surrogates."""
    return "".join(
        character if _has_place_in_html(character) else REPLACEMENT for character in text
    )


def _has_place_in_html(character: str) -> bool:
    return character == "\n" or unicodedata.category(character) not in ("Cc", "Cs")


def data_uri(content: bytes, media_type: str) -> str:
    """Give the content of a file as an address that holds the file itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
