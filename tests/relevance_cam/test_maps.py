"""Maps lie on the image where the network looks."""

import pytest
import torch
from torchvision.models import resnet18

from relevance_cam.maps import place

STRIDE = 32  # of layer4
SIDE = 16  # of the planted square


def test_place():
    """Pixel i of a map lies at pixel stride * i, and the last one's value goes on."""
    maps = torch.tensor([[[0.0, 4.0]]])
    assert place(maps, (2, 4)).tolist() == [[[0, 2, 4, 4], [0, 2, 4, 4]]]
    assert place(maps, (2, 4), plain=True).tolist() == [[[0, 1, 3, 4], [0, 1, 3, 4]]]
    # 80 pixels give layer4 three, 32 apart, and not 80 / 3.
    row = torch.tensor([[[0.0, 32.0, 64.0]]])
    assert place(row, (1, 80), seen=(80, 80))[0, 0, :66].tolist() == [*range(65), 64]
    # On a picture of twice the size, each of the network's pixels is two of the picture's.
    twice = place(row, (1, 160), seen=(80, 80))[0, 0]
    torch.testing.assert_close(twice[1:128], torch.arange(0.25, 63.3, 0.5)[:127])


@pytest.fixture(scope="module")
def changes():
    """How much a square on images of one size changes layer4: corners -> maps (n, h, w)."""
    torch.manual_seed(0)
    model = resnet18(num_classes=3).eval()
    found = []
    model.layer4.register_forward_hook(lambda module, given, output: found.append(output))

    @torch.inference_mode()
    def measure(size, corners):
        plain = 0.3 * torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
        squares = plain.repeat(len(corners), 1, 1, 1)
        for square, (y, x) in zip(squares, corners.tolist(), strict=True):
            square[:, y : y + SIDE, x : x + SIDE] = 2.5
        found.clear()
        for image in [plain, *squares.split(1)]:
            model(image)
        return torch.stack([(with_it - found[0]).abs().sum(1)[0] for with_it in found[1:]])

    return measure


def centroids(maps):
    """(n, 2): y and x of the centroids of maps (n, H, W)."""
    height, width = maps.shape[1:]
    total = maps.sum((1, 2))
    y = (maps.sum(2) * torch.arange(height)).sum(1) / total
    x = (maps.sum(1) * torch.arange(width)).sum(1) / total
    return torch.stack([y, x], 1)


def test_a_square_is_found_where_it_was_planted(changes):
    """To a quarter of layer4's pixel; a plain resize is half a pixel off.

    The image is so large that all that the square changes lies in it.
    """
    size = 16 * STRIDE
    corners = torch.randint(216, 280, (20, 2), generator=torch.Generator().manual_seed(2))
    maps = changes(size, corners)
    centres = corners + (SIDE - 1) / 2
    error = (centroids(place(maps, (size, size))) - centres).abs()
    assert error.max() < STRIDE / 4
    plain = (centroids(place(maps, (size, size), plain=True)) - centres).abs()
    assert plain.min() > STRIDE / 4


def test_at_the_rims_maps_lie_where_they_lie_without_a_rim(changes):
    """A square at a rim changes what lies inwards alone: no map has its centroid there.

    So the map is compared with what an image without that rim gives in the same place: a piece of
    a large image that begins at a pixel of the stage is the same grid.
    """
    large, size, begin = 16 * STRIDE, 224, 4 * STRIDE
    at = [(0, 0), (0, 104), (104, 0), (208, 208), (208, 104), (104, 208), (0, 208), (16, 200)]
    corners = torch.tensor(at)
    first = begin // STRIDE
    piece = slice(first, first + size // STRIDE)
    reference = place(changes(large, corners + begin)[:, piece, piece], (size, size))
    found = place(changes(size, corners), (size, size))
    error = (centroids(found) - centroids(reference)).abs()
    assert error.max() < STRIDE / 4
