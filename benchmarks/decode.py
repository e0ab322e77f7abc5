"""Decoding of a raster and nothing else, in a module that processes can import without torch."""
from PIL import Image


def decode(path):
    with Image.open(path) as image:
        image.load()
