"""Small maps computed as matrix products: the same numbers, and where they are."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from dl_slicer.model import convolutions, networks


def convolution(size: int, stride: int, padding: int) -> nn.Conv2d:
    """A plain convolution of 5 to 7 channels."""
    torch.manual_seed(size)
    return nn.Conv2d(5, 7, size, stride, padding, bias=False)


@pytest.mark.parametrize("kernel", [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0), (7, 2, 3)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (7, 4)])
def test_values_and_gradients_are_those_of_torch(kernel, shape):
    """In float64 both ways differ by rounding alone, whatever the kernel and the map."""
    plain = convolution(*kernel).double()
    ours = copy.deepcopy(plain)
    convolutions.use_matrices(ours)
    images = torch.randn(4, 5, *shape, dtype=torch.float64)
    results = []
    for layer in (plain, ours):
        seen = images.clone().requires_grad_()
        output = layer(seen)
        (output * torch.arange(output.numel()).view_as(output)).sum().backward()
        results.append((output, seen.grad, layer.weight.grad))
    for expected, found in zip(*results, strict=True):
        assert expected.shape == found.shape
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)


def test_gradients_by_small_differences():
    """The gradients are those of the function itself."""
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(convolutions.MatrixConvolution.apply, (maps, weight, 2, 1))


def test_only_small_maps_are_computed_so(monkeypatch):
    """Larger ones go to torch, and so does what is computed elsewhere than on a CPU."""
    calls = []
    plain_forward = nn.Conv2d.forward
    monkeypatch.setattr(
        nn.Conv2d, "forward", lambda layer, images: calls.append(1) or plain_forward(layer, images)
    )
    layer = convolution(3, 1, 1)
    convolutions.use_matrices(layer)
    for side in range(1, convolutions.LARGEST_SIDE + 3):
        calls.clear()
        layer(torch.zeros(1, 5, side, side))
        assert bool(calls) == (side > convolutions.LARGEST_SIDE), side
    calls.clear()
    layer.to("meta")(torch.zeros(1, 5, 2, 2, device="meta"))
    assert calls


def test_other_kinds_of_convolution_are_left_alone():
    """Groups, dilation, a bias, other padding: no ResNet of ours has them."""
    others = [
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 4, 3, dilation=2, bias=False),
        nn.Conv2d(4, 4, (3, 1), bias=False),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(4, 4, 3),
    ]
    for layer in others:
        convolutions.use_matrices(layer)
        assert type(layer) is nn.Conv2d, layer


def test_a_network_gives_what_torchvision_gives():
    """A ResNet-18 at 64 pixels, in float32, forward and backward, and its state dict."""
    ours = networks.new_network("resnet18", 5).to(memory_format=torch.channels_last)
    plain = torchvision.models.resnet18(num_classes=5)
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(3, 3, 64, 64)
    gradients = []
    for model in (ours, plain):
        model.train()
        model(images).square().sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, expected in gradients[1].items():
        found = gradients[0][name]
        assert (found - expected).norm() <= 1e-3 * expected.norm(), name
    smallest = ours.layer4[1].conv2
    assert isinstance(smallest, convolutions.SmallMapConvolution)
    assert smallest.weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_autocast_computes_in_its_precision():
    """Within autocast the product is in bfloat16, and the gradient in the weights' precision."""
    layer = convolution(3, 1, 1).to(memory_format=torch.channels_last)
    convolutions.use_matrices(layer)
    images = torch.randn(2, 5, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images)
    assert output.dtype == torch.bfloat16
    output.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(output.float(), layer(images), rtol=0.02, atol=0.02)
