"""Convolutions of small maps, computed as one matrix product each.

The last stages of a network see maps of a few pixels: 2 x 2 of a patch of 64 pixels, 3 x 3 of one
of 80. The library of convolutions that torch uses on a CPU works along the rows of a map, and finds
next to nothing to do in such short ones: the last stage of a ResNet-18 took half of a step. Put
side by side, what each output pixel sees makes a matrix that is large enough.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad

# Pixels of the longer side of the output. With larger maps it is no faster (docs/speed.md).
LARGEST_SIDE = 5


class SmallMapConvolution(nn.Conv2d):
    """A convolution that computes small maps on a CPU as a matrix product, and others as ever."""

    computes_as = nn.Conv2d  # for who takes no subclass, since one might compute something else

    def forward(self, images: Tensor) -> Tensor:
        """Give what nn.Conv2d gives of (n, c, h, w), but for rounding."""
        if not self._is_worthwhile(images):
            return super().forward(images)
        dtype = images.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        # Channels last in memory, as networks lie here, so that neither is copied.
        maps = images.permute(0, 2, 3, 1).to(dtype)
        weight = self.weight.permute(0, 2, 3, 1).to(dtype)
        return MatrixConvolution.apply(maps, weight, self.stride[0], self.padding[0]).permute(
            0, 3, 1, 2
        )

    def _is_worthwhile(self, images: Tensor) -> bool:
        if images.device.type != "cpu" or images.ndim != 4 or torch.compiler.is_compiling():
            return False
        sides = [
            (size + 2 * self.padding[0] - self.kernel_size[0]) // self.stride[0] + 1
            for size in images.shape[2:]
        ]
        return min(sides) >= 1 and max(sides) <= LARGEST_SIDE


class MatrixConvolution(torch.autograd.Function):
    """A convolution with zeros around the map, of tensors that have their channels last."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, maps: Tensor, weight: Tensor, stride: int, padding: int
    ) -> Tensor:
        """Give (n, rows, cols, out) of maps (n, h, w, c) and weight (out, k, k, c)."""
        size = weight.shape[1]
        padded = pad(maps, (0, 0, padding, padding, padding, padding))
        seen = [padded[window] for window in _windows(padded, size, stride)]
        rows, cols = seen[0].shape[1:3]
        # A row for each output pixel: (n * rows * cols, k * k * c).
        columns = torch.cat(seen, 3).flatten(0, 2)
        flat_weight = weight.flatten(1)
        ctx.save_for_backward(columns, flat_weight)
        ctx.shapes = (padded.shape, weight.shape, stride, padding)
        return (columns @ flat_weight.T).view(len(maps), rows, cols, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients of maps and weight."""
        columns, flat_weight = ctx.saved_tensors
        padded_shape, weight_shape, stride, padding = ctx.shapes
        flat_gradient = gradient.flatten(0, 2)
        of_maps = None
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (flat_gradient.T @ columns).view(weight_shape)
        if ctx.needs_input_grad[0]:
            channels = weight_shape[3]
            of_columns = (flat_gradient @ flat_weight).view(*gradient.shape[:3], -1)
            of_padded = flat_gradient.new_zeros(padded_shape)
            windows = _windows(of_padded, weight_shape[1], stride)
            for window, of_window in zip(windows, of_columns.split(channels, 3), strict=True):
                of_padded[window] += of_window
            height, width = padded_shape[1] - 2 * padding, padded_shape[2] - 2 * padding
            of_maps = of_padded.narrow(1, padding, height).narrow(2, padding, width)
        return of_maps, of_weight, None, None


def _windows(padded: Tensor, size: int, stride: int) -> list[tuple[slice, slice, slice]]:
    """Give for each weight of a kernel the pixels (n, rows, cols, c) that it is multiplied with."""

    def positions(offset: int, length: int) -> slice:
        outputs = (length - size) // stride + 1
        return slice(offset, offset + stride * (outputs - 1) + 1, stride)

    return [
        (slice(None), positions(y, padded.shape[1]), positions(x, padded.shape[2]))
        for y in range(size)
        for x in range(size)
    ]


def use_matrices(model: nn.Module) -> None:
    """Let a network's convolutions compute small maps as matrix products.

    Its weights and its state dict stay what they are. Convolutions of another kind than a ResNet
    has (in groups, dilated, not square) are left alone.
    """
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _is_plain(layer):
            # The same object, so that whoever holds it has the faster one, too.
            layer.__class__ = SmallMapConvolution


def _is_plain(layer: nn.Conv2d) -> bool:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros" or layer.bias is not None:
        return False
    is_square = all(
        len(set(pair)) == 1 for pair in (layer.kernel_size, layer.stride, layer.padding)
    )
    return is_square and layer.groups == 1 and layer.dilation == (1, 1)
