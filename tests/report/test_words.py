"""Numbers and names in words."""

import pytest

from dl_slicer.report import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.percent(0.1234), "12.3\u00a0%"),
        (words.percent(None), "–"),
        (words.interval((0.0, 0.5)), "0.0 to 50.0\u00a0%"),
        (words.count(1, "patch", "patches"), "1\u00a0patch"),
        (words.count(0, "raster"), "0\u00a0rasters"),
        (words.count(56_000, "patch", "patches"), "56\u202f000\u00a0patches"),
        (words.network_name("resnet101"), "ResNet-101"),
        (words.data_uri(b"abc", "image/png"), "data:image/png;base64,YWJj"),
    ],
)
def test_words(text, expected):
    assert text == expected
