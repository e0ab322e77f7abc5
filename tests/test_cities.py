"""What a city is called."""

from dl_slicer.cities import city_code


def test_code():
    codes = {
        "Almaty (ALA)": "ALA",
        "Sao Paulo (x) (GRU)": "GRU",
        "Paris": "Paris",
        "Odd (A) tail": "A",
        "Empty ()": "Empty ()",
        "Space ( B )": "B",
    }
    assert [city_code(city) for city in codes] == list(codes.values())
