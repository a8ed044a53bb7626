"""Bad input: the exception, and what its message says."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import xconv
from xconv._arguments import check_memory
from xconv.backends import Backend
from xconv.backends.numpy import NumpyBackend

pytestmark = pytest.mark.numpy_only


def ones(*shape, dtype=np.float64):
    return np.ones(shape, dtype)


X, W, B = ones(2, 4, 7, 7), ones(6, 4, 3, 3), ones(6)
DY = ones(2, 6, 5, 5)
ONE, THREE = ones(1, 1, 1, dtype=np.float32), ones(1, 1, 3, dtype=np.float32)


def conv(*args, **options):
    return lambda: xconv.conv(*args, **options)


BAD = {
    # arrays
    "list": (conv([[1.0]], W), TypeError, "`x` must be an array"),
    "list to convert": (conv([[1.0]], W), TypeError, "list: make an array of it first"),
    "number": (conv(X, 3.0), TypeError, "`w` must be an array"),
    "none": (conv(None, W), TypeError, "`x` must be an array"),
    "bias list": (conv(X, W, [1.0] * 6), TypeError, "`b` must be an array"),
    "masked": (
        conv(np.ma.ones((2, 4, 7, 7)), W),
        TypeError,
        "`x` must be a plain array, got MaskedArray: convert it, a masked one with `filled(value)`",
    ),
    "positional option": (conv(X, W, B, 2), TypeError, "positional"),
    # ranks and channels
    "no axes": (conv(ones(), W), ValueError, "`x` must have a batch, a channel and at least one spatial axis"),
    "two axes": (conv(ones(2, 4), ones(6, 4)), ValueError, "got shape (2, 4)"),
    "rank of w": (conv(X, ones(6, 4, 3)), ValueError, "`w` must have as many axes as `x`"),
    "one image": (
        conv(X[0], W),
        ValueError,
        "got shapes (6, 4, 3, 3) and (4, 7, 7): write `x[None]` for one image, `x[:, None]` for many of one channel",
    ),
    "one image with channels last": (
        conv(ones(7, 9, 4), W, layout="channels_last"),
        ValueError,
        "and (7, 9, 4): write `x[None]` for one image, `x[..., None]` for many of one channel",
    ),
    "a matrix as image": (conv(X[0, 0], W), ValueError, "`x[None, None]` for one image of one channel"),
    "a matrix as image and filter": (conv(X[0, 0], W[0, 0]), ValueError, "(7, 7): write `x[None, None]` for one image"),
    "a matrix with channels last": (
        conv(X[0, 0], W, layout="channels_last"),
        ValueError,
        "write `x[None, ..., None]` for one image of one channel",
    ),
    "windows of a matrix": (lambda: xconv.im2col(X[0, 0], (3, 3)), ValueError, "(7, 7): write `x[None, None]` for one"),
    "one filter": (
        conv(X, W[0]),
        ValueError,
        "write `w[None]` for one filter, `w[:, None]` for many of one channel",
    ),
    "a matrix as filter": (conv(X, W[0, 0]), ValueError, "write `w[None, None]` for one filter of one channel"),
    "one image for a gradient": (lambda: xconv.conv_weight_grad(DY, X[0], W.shape), ValueError, "write `x[None]` for"),
    "one image to transpose": (lambda: xconv.conv_transpose(X[0], W), ValueError, "write `x[None]` for one image"),
    "x_shape of one image": (
        lambda: xconv.conv_input_grad(DY[0], W, (4, 7, 7)),
        ValueError,
        "`w` must have as many axes as `x_shape`, got shapes (6, 4, 3, 3) and (4, 7, 7)",
    ),
    "axes of a volume": (conv(ones(1, 4, 5, 5, 5), ones(4, 3)), ValueError, "got shapes (4, 3) and (1, 4, 5, 5, 5)"),
    "filters last": (conv(X, ones(3, 3, 4, 6)), ValueError, "on its second axis, got shape (3, 3, 4, 6)"),
    "channels last": (
        conv(ones(2, 7, 7, 4), W),
        ValueError,
        'got shape (6, 4, 3, 3): `layout` may be "channels_last"',
    ),
    "x_shape with channels last": (
        lambda: xconv.conv_input_grad(np.moveaxis(DY, 1, -1), W, (2, 7, 7, 4)),
        ValueError,
        'the 7 channels of `x_shape` on its second axis, got shape (6, 4, 3, 3): `layout` may be "channels_last"',
    ),
    "no groups, and a size like the channels": (
        conv(ones(1, 64, 32, 32), ones(32, 32, 3, 3)),
        ValueError,
        "got shape (32, 32, 3, 3): `groups` may be 2",
    ),
    "no groups of use": (conv(ones(1, 3, 9, 9), ones(1, 1, 3, 3)), ValueError, "got shape (1, 1, 3, 3)"),
    "filters of a convolution to transpose": (
        lambda: xconv.conv_transpose(ones(1, 8, 3, 3), ones(3, 8, 3, 3)),
        ValueError,
        "on its first axis, got shape (3, 8, 3, 3)",
    ),
    "bool with integers": (conv(X.astype(bool), W.astype("int16")), TypeError, "convert `x` to int16"),
    "no groups": (conv(X, ones(8, 1, 3, 3)), ValueError, "got shape (8, 1, 3, 3): `groups` may be 4"),
    "channels": (
        conv(X, ones(6, 3, 3, 3)),
        ValueError,
        "`w` must have the 4 channels of `x` on its second axis, got shape (6, 3, 3, 3)",
    ),
    "channels of a group": (
        conv(X, W, groups=2),
        ValueError,
        "the 4 channels of `x`, 2 for each of 2 groups, on its second axis",
    ),
    "last layout channels": (conv(X, W, layout="channels_last"), ValueError, "`w` must have the 7 channels of `x`"),
    "bias length": (conv(X, W, ones(5)), ValueError, "`b` must have one element per output channel"),
    "bias rank": (conv(X, W, ones(6, 1)), ValueError, "got shape (6, 1)"),
    # arrays in each other's place: only where they fit
    "exchanged for a weight gradient": (
        lambda: xconv.conv_weight_grad(X, DY, W.shape),
        ValueError,
        "on its second axis, got shape (6, 4, 3, 3): `dy` and `x` may be exchanged",
    ),
    "exchanged for a weight gradient, with another stride": (
        lambda: xconv.conv_weight_grad(X, DY, W.shape, stride=3),
        ValueError,
        "on its second axis, got shape (6, 4, 3, 3): `dy` and `x` may be exchanged",
    ),
    "images and filters of Keras": (
        conv(ones(2, 32, 32, 4), ones(3, 3, 4, 16)),
        ValueError,
        'got shape (3, 3, 4, 16): `layout` may be "channels_last" and `w_layout` may be "...io"',
    ),
    "images of Keras or MLX": (
        conv(ones(2, 32, 32, 3), ones(16, 3, 3, 3)),
        ValueError,
        '`layout` may be "channels_last", or `layout` may be "channels_last" and `w_layout` may be "o...i"',
    ),
    "transposed filters of Keras": (
        lambda: xconv.conv_transpose(ones(2, 9, 9, 16), ones(3, 3, 5, 16), layout="channels_last"),
        ValueError,
        'got shape (3, 3, 5, 16): `w_layout` may be "...oi"',
    ),
    "exchanged for a weight gradient of one size": (
        lambda: xconv.conv_weight_grad(X, ones(2, 6, 7, 7), W.shape, padding=1),
        ValueError,
        "got shape (6, 4, 3, 3): `dy` and `x` may be exchanged",
    ),
    "exchanged for a weight gradient of as many channels": (
        lambda: xconv.conv_weight_grad(X, X[..., 2:, 2:], (4, 4, 3, 3)),
        ValueError,
        "`dy` must have the shape of the result, (2, 4, 3, 3), got shape (2, 4, 7, 7): `dy` and `x` may be exchanged",
    ),
    "a weight gradient that does not fit": (
        lambda: xconv.conv_weight_grad(X, DY, W.shape, padding=1),
        ValueError,
        "on its second axis, got shape (6, 4, 3, 3)",
    ),
    "exchanged for an input gradient": (
        lambda: xconv.conv_input_grad(W, DY, X.shape),
        ValueError,
        "got shape (2, 6, 5, 5): `dy` and `w` may be exchanged",
    ),
    "exchanged": (conv(W, X), ValueError, "kernels of size (7, 7): `x` and `w` may be exchanged"),
    "exchanged with a bias": (conv(W, X, B, padding=3), ValueError, "got shape (6,): `x` and `w` may be exchanged"),
    "exchanged for a plan": (lambda: xconv.plan(W, X), ValueError, "`x` and `w` may be exchanged"),
    "exchanged to transpose": (
        lambda: xconv.conv_transpose(ones(4, 5, 3, 3), X),
        ValueError,
        "on its first axis, got shape (2, 4, 7, 7): `x` and `w` may be exchanged",
    ),
    "exchanged in the classic": (
        lambda: xconv.conv_forward(W, X, B),
        ValueError,
        "`b` must have shape (2, 1) or (2,), got (6,): `X` and `W` may be exchanged",
    ),
    # orders of the filters' axes
    "w_layout": (
        conv(X, W, w_layout="HWIO"),
        ValueError,
        "`w_layout` must be one of ('oi...', '...io', 'o...i', 'io...', '...oi', 'i...o'), got 'HWIO'",
    ),
    "w_layout type": (conv(X, W, w_layout=None), TypeError, "`w_layout` must be a string, got None"),
    "filters of Keras": (
        conv(ones(1, 32, 32, 3), ones(3, 3, 3, 64), layout="channels_last"),
        ValueError,
        'dilated kernels of size (3, 64): `w_layout` may be "...io"',
    ),
    "filters of Keras with a bias": (
        conv(ones(1, 32, 32, 3), ones(3, 3, 3, 6), B, layout="channels_last"),
        ValueError,
        'got shape (6,): `w_layout` may be "...io"',
    ),
    "filters of Keras for an input gradient": (
        lambda: xconv.conv_input_grad(ones(1, 6, 30, 30), ones(3, 3, 3, 6), (1, 3, 32, 32)),
        ValueError,
        'got shape (1, 6, 30, 30): `w_layout` may be "...io"',
    ),
    "w_shape of MLX": (
        lambda: xconv.conv_weight_grad(DY, X, (6, 3, 3, 4)),
        ValueError,
        'on its second axis, got shape (6, 3, 3, 4): `w_layout` may be "o...i"',
    ),
    "filters of a convolution, transposed": (
        lambda: xconv.conv_transpose(X, ones(9, 4, 3, 3)),
        ValueError,
        'on its first axis, got shape (9, 4, 3, 3): `w_layout` may be "oi..."',
    ),
    "no order of filters": (
        conv(X, ones(5, 5, 5, 6), w_layout="...io"),
        ValueError,
        'on its last but one axis (`w_layout` "...io"), got shape (5, 5, 5, 6)',
    ),
    "channels in front": (
        conv(X, ones(5, 5, 5, 6), w_layout="i...o"),
        ValueError,
        'on its first axis (`w_layout` "i...o"), got shape (5, 5, 5, 6)',
    ),
    "channels behind to transpose": (
        lambda: xconv.conv_transpose(X, ones(3, 3, 5, 6), w_layout="...oi"),
        ValueError,
        '`w` must have the 4 channels of `x` on its last axis (`w_layout` "...oi"), got shape (3, 3, 5, 6)',
    ),
    "one filter with channels behind": (
        conv(X, ones(3, 3, 4), w_layout="...io"),
        ValueError,
        "write `w[..., None]` for one filter, `w[..., None, :]` for many of one channel",
    ),
    "one filter with a channel behind": (
        conv(X, ones(3, 3, 4), w_layout="o...i"),
        ValueError,
        "write `w[None]` for one filter, `w[..., None]` for many of one channel",
    ),
    "one filter behind its channels": (
        conv(X, ones(4, 3, 3), w_layout="io..."),
        ValueError,
        "write `w[:, None]` for one filter, `w[None]` for many of one channel",
    ),
    "a matrix as filter of Keras": (
        conv(X, W[0, 0], w_layout="...io"),
        ValueError,
        "write `w[..., None, None]` for one",
    ),
    # groups
    "groups 0": (conv(X, W, groups=0), ValueError, "`groups` must divide"),
    "groups 3": (conv(X, W, groups=3), ValueError, "`groups` must divide the 4 input and the 6 output channels, got 3"),
    "groups -1": (conv(X, W, groups=-1), ValueError, "`groups`"),
    "groups 1.0": (conv(X, W, groups=1.0), TypeError, "`groups` must be made of integers, got 1.0"),
    # stride, dilation, padding
    "stride 0": (conv(X, W, stride=0), ValueError, "`stride` must be at least 1 on every axis, got 0"),
    "stride -1": (conv(X, W, stride=(1, -1)), ValueError, "`stride` must be at least 1 on every axis, got (1, -1)"),
    "stride 1.0": (conv(X, W, stride=1.0), TypeError, "`stride` must be made of integers, got 1.0"),
    "stride x": (conv(X, W, stride="x"), TypeError, "`stride` must be made of integers"),
    "stride none": (conv(X, W, stride=None), TypeError, "`stride` must be made of integers, got None"),
    "stride array": (conv(X, W, stride=np.array(1.5)), TypeError, "`stride` must be made of integers, got array(1.5)"),
    "three strides": (conv(X, W, stride=(1, 1, 1)), ValueError, "`stride` must have one value per spatial axis (2)"),
    "dilation 0": (conv(X, W, dilation=0), ValueError, "`dilation` must be at least 1"),
    "one dilation": (conv(X, W, dilation=(2,)), ValueError, "`dilation` must have one value per spatial axis"),
    "padding word": (conv(X, W, padding="most"), ValueError, "must be one of ('valid', 'same', 'same_lower') or made"),
    "full padding": (conv(X, W, padding="full", dilation=(1, 2)), ValueError, "got 'full': write (2, 4)"),
    "causal padding": (conv(X, W, padding="causal"), ValueError, "write ((2, 0), (2, 0))"),
    "padding in capitals": (conv(X, W, padding="SAME"), ValueError, "got 'SAME': write \"same\""),
    "padding of all axes": (
        conv(X, W, padding=((0, 0), (0, 0), (1, 2), 1)),
        ValueError,
        "write ((1, 2), (1, 1)), without batch and channels",
    ),
    "fractional stride": (conv(X, W, stride=0.5), TypeError, "or input dilation, is the stride of `conv_transpose`"),
    "padding 0.5": (conv(X, W, padding=0.5), TypeError, "`padding` must be made of integers, got 0.5"),
    "three paddings": (conv(X, W, padding=(1, 1, 1)), ValueError, "`padding` must have one int or one (lo, hi) pair"),
    "triple": (conv(X, W, padding=((1, 1, 1), 1)), ValueError, "`padding` must have one int or one (lo, hi) pair"),
    "flat padding": (
        conv(X, W, padding=(1, 2, 3, 4)),
        ValueError,
        "got (1, 2, 3, 4): write ((3, 4), (1, 2)), if these count from the last axis, as F.pad's",
    ),
    "flat padding of a line": (conv(ones(1, 4, 7), W[..., 0], padding=[2, 0]), ValueError, "(2, 0): write ((2, 0),)"),
    "flat padding of a volume": (
        lambda: xconv.im2col(ones(1, 4, 7, 7, 7), 3, padding=(1, 2, 3, 4, 5, 6)),
        ValueError,
        "write ((5, 6), (3, 4), (1, 2)), if",
    ),
    "pad mode": (conv(X, W, pad_mode="mean"), ValueError, "`pad_mode` must be one of"),
    "pad mode elsewhere": (conv(X, W, pad_mode="replicate"), ValueError, "got 'replicate': write \"edge\""),
    "pad mode type": (conv(X, W, pad_mode=0), TypeError, "`pad_mode` must be a string, got 0"),
    "pad nothing": (conv(ones(1, 4, 0, 7), W, padding=2, pad_mode="edge"), ValueError, "needs an element to pad from"),
    "pad value array": (conv(X, W, pad_value=np.array(1.0)), TypeError, "`pad_value` must be a number, got array(1.)"),
    "pad value none": (conv(X, W, pad_value=None), TypeError, "`pad_value` must be a number, got None"),
    "pad value word": (conv(X, W, pad_value="1"), TypeError, "`pad_value` must be a number, got '1'"),
    "pad value bool": (conv(X, W, pad_value=True), TypeError, "`pad_value` must be a number, got True"),
    "pad value and mode": (
        conv(X, W, padding=1, pad_mode="wrap", pad_value=2),
        ValueError,
        "`pad_value` must be 0 with `pad_mode` 'wrap', which reads from `x`, got 2",
    ),
    "complex pad value": (
        conv(X, W, padding=1, pad_value=2j),
        ValueError,
        "`pad_value` must be a real number for a result of float64, got 2j",
    ),
    "pad value beyond float64": (conv(X, W, pad_value=10**400), ValueError, "`pad_value` must be within the range of"),
    "pad value beyond float16": (
        conv(X.astype("float16"), W.astype("float16"), pad_value=-1e5),
        ValueError,
        "`pad_value` must be within the range of float16 for a result of float16, got -100000.0",
    ),
    "pad value beyond complex64": (
        conv(X.astype("complex64"), W.astype("complex64"), pad_value=1e50j),
        ValueError,
        "1e+50j",
    ),
    **{
        f"pad value {value} for int8": (
            conv(X.astype("int8"), W.astype("int8"), pad_value=value),
            ValueError,
            f"`pad_value` must be an integer from -128 to 127 for a result of int8, got {value}",
        )
        for value in (0.5, 128, -129, float("inf"), float("nan"), 1j)
    },
    "pad value of windows": (lambda: xconv.im2col(X.astype("uint8"), 3, pad_value=-1), ValueError, "from 0 to 255"),
    "pad value of a gradient": (
        lambda: xconv.conv_input_grad(DY, W, X.shape, pad_value="0"),
        TypeError,
        "`pad_value` must be a number",
    ),
    # sizes
    "small input": (conv(ones(2, 4, 2, 7), W), ValueError, "kernel must fit into the padded input"),
    "dilated kernel": (conv(X, W, dilation=4), ValueError, "dilated kernels of size (9, 9)"),
    "cropped away": (conv(X, W, padding=-3), ValueError, "`padding` ((-3, -3), (-3, -3))"),
    "no taps": (conv(X, ones(6, 4, 0, 3)), ValueError, "kernel must have a tap on every spatial axis"),
    # dtypes
    "bool": (
        conv(X > 0, W > 0),
        TypeError,
        "got `x` bool, `w` bool: convert `x` and `w` to float32, for example",
    ),
    "mask": (conv(X > 0, W), TypeError, "got `x` bool, `w` float64: convert `x` to float64"),
    "object": (conv(X.astype(object), W), TypeError, "`x` object"),
    "words": (conv(X.astype(str), W), TypeError, "convert `x` to float64"),
    "dates": (conv(X.astype("m8[s]"), W), TypeError, "`x` timedelta64[s]"),
    "int by float": (conv(X.astype(int), W), TypeError, "do not mix, got `x` int64, `w` float64"),
    "image by float": (
        conv(X.astype("u1"), W.astype("f4")),
        TypeError,
        "got `x` uint8, `w` float32: convert `x` to float32",
    ),
    "int bias": (conv(X, W, B.astype(int)), TypeError, "`b` int64: convert `b` to float64"),
    "u8 by i8": (conv(X.astype("u8"), W.astype("i8")), TypeError, "`w` int64: convert one of them"),
    "narrow": (conv(X, W, dtype=np.float32), TypeError, "`dtype` must be able to hold float64"),
    "other kind": (conv(X, W, dtype=np.int64), TypeError, "`dtype` must be of the kind of float64"),
    "no dtype": (conv(X, W, dtype="nonsense"), TypeError, "`dtype` must be an integer, real or complex"),
    "dtype list": (conv(X, W, dtype=[1]), TypeError, "`dtype`"),
    "dtype bool": (conv(X, W, dtype=bool), TypeError, "`dtype`"),
    # algorithm, layout
    "algorithm": (
        conv(X, W, algorithm="magic"),
        ValueError,
        "`algorithm` must be one of ('auto', 'pointwise', 'depthwise', 'winograd', 'gemm', 'fft', 'mec') on numpy, got ",
    ),
    "algorithm type": (conv(X, W, algorithm=None), TypeError, "`algorithm` must be a string, got None"),
    "pointwise 3x3": (conv(X, W, algorithm="pointwise"), ValueError, "has more than one tap"),
    "pointwise stride": (conv(X, W[..., :1, :1], algorithm="pointwise", stride=2), ValueError, "the stride is above 1"),
    "pointwise padding": (conv(X, W[..., :1, :1], algorithm="pointwise", padding=1), ValueError, "takes no padding"),
    "mec in 1-D": (conv(X[..., 0], W[..., 0], algorithm="mec"), ValueError, "takes at least 2 spatial axes"),
    "mec dilated": (conv(X, W, algorithm="mec", dilation=(2, 1)), ValueError, "dilation of the first axis is above 1"),
    "mec stride": (conv(X, W, algorithm="mec", stride=3), ValueError, "no two windows share a row"),
    "layout": (conv(X, W, layout="NHWC"), ValueError, '`layout` must be "channels_first" or "channels_last"'),
    "layout type": (conv(X, W, layout=None), TypeError, "`layout` must be a string"),
    # gradients
    "dy size": (
        lambda: xconv.conv_input_grad(DY, W, (2, 4, 8, 7)),
        ValueError,
        "`dy` must have the shape of the result, (2, 6, 6, 5)",
    ),
    "dy rank": (
        lambda: xconv.conv_weight_grad(ones(2, 6, 5), X, W.shape),
        ValueError,
        "`dy` must have the shape of the result",
    ),
    "x_shape": (lambda: xconv.conv_input_grad(DY, W, (2, 4, 7.0, 7)), TypeError, "`x_shape` must be made of integers"),
    "x for its shape": (lambda: xconv.conv_input_grad(DY, W, X), TypeError, "got an array: write its `shape`"),
    "x_shape int": (lambda: xconv.conv_input_grad(DY, W, 7), ValueError, "`x_shape` must be a sequence"),
    "x_shape negative": (
        lambda: xconv.conv_input_grad(DY, W, (2, 4, -7, 7)),
        ValueError,
        "`x_shape` must be a sequence",
    ),
    "w_shape": (lambda: xconv.conv_weight_grad(DY, X, (6, 4, 3)), ValueError, "`w_shape` must have as many axes"),
    "w_shape channels": (
        lambda: xconv.conv_weight_grad(DY, X, (6, 3, 3, 3)),
        ValueError,
        "`w_shape` must have the 4 channels of `x`",
    ),
    "x_shape rank": (lambda: xconv.conv_input_grad(DY, W, (6, 4)), ValueError, "`x_shape` must have a batch"),
    "x_shape empty": (
        lambda: xconv.conv_input_grad(DY, W, (2, 4, 0, 7), padding=2, pad_mode="edge"),
        ValueError,
        "got `x_shape` of size (0, 7)",
    ),
    "x_shape beyond memory": (lambda: xconv.conv_input_grad(DY, W, (2, 4, 10**30, 7)), ValueError, "be addressed"),
    "padding beyond memory": (conv(X, W, padding=10**12, pad_mode="wrap"), ValueError, "`padding`"),
    "padding beyond numbers": (conv(X, W, padding=10**30), ValueError, "be addressed"),
    "padding dict": (conv(X, W, padding={1: 2, 3: 4}), TypeError, "`padding` must be made of integers"),
    "stride set": (conv(X, W, stride={1, 2}), TypeError, "`stride` must be made of integers"),
    "rank 32": (
        conv(ones(1, 2, 2, *[1] * 31), ones(1, 2, 2, *[1] * 31)),
        ValueError,
        "gemm: `x` has more than 31 spatial axes",
    ),
    "half of another kind": (
        conv(X.astype("f2"), W.astype("f2"), dtype=ml_dtypes.bfloat16),
        TypeError,
        "`dtype` must be able to hold float16",
    ),
    "w_shape nested": (
        lambda: xconv.conv_weight_grad(DY, X, (6, 4, (3, 3), 3)),
        ValueError,
        "`w_shape` must be a sequence",
    ),
    "dy dtype": (lambda: xconv.conv_input_grad(DY.astype(int), W, X.shape), TypeError, "`dy` int64"),
    # transposed
    "transpose rank": (lambda: xconv.conv_transpose(ones(2, 4), ones(4, 2)), ValueError, "`x` must have a batch"),
    "transpose channels": (
        lambda: xconv.conv_transpose(X, ones(3, 4, 3, 3)),
        ValueError,
        "`w` must have the 4 channels of `x` on its first axis",
    ),
    "transpose layout": (
        lambda: xconv.conv_transpose(ones(2, 7, 7, 6), W),
        ValueError,
        'got shape (6, 4, 3, 3): `layout` may be "channels_last"',
    ),
    "transpose groups": (
        lambda: xconv.conv_transpose(X, ones(4, 2, 3, 3), groups=3),
        ValueError,
        "`groups` must divide",
    ),
    "transpose bias": (
        lambda: xconv.conv_transpose(X, ones(4, 2, 3, 3), B),
        ValueError,
        "`b` must have one element per output channel, shape (2,)",
    ),
    "transpose empty": (
        lambda: xconv.conv_transpose(ones(1, 0, 1, 1), ones(1, 1, 1, 1), layout="channels_last"),
        ValueError,
        "`x` must have an element on every spatial axis, got size (0, 1)",
    ),
    "output_padding": (
        lambda: xconv.conv_transpose(X, ones(4, 2, 3, 3), output_padding=1),
        ValueError,
        "`output_padding` must be less than the stride",
    ),
    "output_padding -1": (
        lambda: xconv.conv_transpose(X, ones(4, 2, 3, 3), output_padding=-1),
        ValueError,
        "`output_padding` must be at least 0",
    ),
    "output_size": (
        lambda: xconv.conv_transpose(X, ones(4, 2, 3, 3), stride=2, output_size=(14, 17)),
        ValueError,
        "`output_size` must be one that such a convolution takes to the size of `x`, 15 to 16 by 15 to 16, got (14, 17)",
    ),
    "output_size and padding": (
        lambda: xconv.conv_transpose(X, ones(4, 2, 3, 3), stride=2, output_size=15, output_padding=1),
        ValueError,
        "`output_size` must be given without `output_padding`, got 15 and 1",
    ),
    "output_size of floats": (
        lambda: xconv.conv_transpose(X, ones(4, 2, 3, 3), stride=2, output_size=15.0),
        TypeError,
        "`output_size` must be made of integers",
    ),
    "output_sizes": (
        lambda: xconv.conv_transpose(X, ones(4, 2, 3, 3), stride=2, output_size=(15, 15, 15)),
        ValueError,
        "`output_size` must have one value per spatial axis (2)",
    ),
    "output_padding same": (
        lambda: xconv.conv_transpose(X, ones(4, 2, 3, 3), stride=2, padding="same", output_padding=1),
        ValueError,
        '`output_padding` must be 0 for `padding` "same"',
    ),
    "no output": (
        lambda: xconv.conv_transpose(X, ones(4, 2, 3, 3), padding=9),
        ValueError,
        "`padding` must leave some output",
    ),
    # windows
    "window": (lambda: xconv.im2col(X, 0), ValueError, "`kernel_size` must be at least 1"),
    "windows": (lambda: xconv.im2col(X, (3, 3, 3)), ValueError, "`kernel_size` must have one value per spatial axis"),
    "window of nothing": (lambda: xconv.im2col(ones(3), 3), ValueError, "`x` must have a batch"),
    "window too large": (lambda: xconv.im2col(X, 8), ValueError, "kernel must fit into the padded input"),
    "bool windows": (lambda: xconv.im2col(X > 0, 3), TypeError, "`x` bool"),
    "order": (
        lambda: xconv.im2col(X, 3, axes=(0, 1, 2)),
        ValueError,
        "`axes` must be a permutation of the 6 axes (n, c,",
    ),
    "order twice": (lambda: xconv.im2col(X, 3, axes=(0, 1, 2, 3, 4, -2)), ValueError, "got (0, 1, 2, 3, 4, -2)"),
    "order beyond": (lambda: xconv.col2im(ones(1, 1, 3, 3), 5, axes=(0, 1, 2, 4)), ValueError, "`axes` must be"),
    "order of floats": (lambda: xconv.im2col(X, 3, axes=(0.0, 1, 2, 3, 4, 5)), TypeError, "`axes`"),
    "order by name": (lambda: xconv.col2im(ones(1, 1, 3, 3), 5, axes="nckd"), TypeError, "`axes`"),
    "cols odd": (lambda: xconv.col2im(ones(1, 1, 3, 3, 5), 5), ValueError, "`cols` must have the axes"),
    "cols size": (lambda: xconv.col2im(ones(1, 1, 3, 4), 5), ValueError, "`cols` must have the output size (3,)"),
    "sizes": (
        lambda: xconv.col2im(ones(1, 1, 3, 3), (5, 5)),
        ValueError,
        "`size` must have one value per spatial axis",
    ),
    "size -1": (lambda: xconv.col2im(ones(1, 1, 3, 3), -1), ValueError, "`size` must be at least 0"),
    # the classic four
    "classic channels": (
        lambda: xconv.conv_forward(X, ones(6, 3, 3, 3), B),
        ValueError,
        "`W` must have the 4 channels",
    ),
    "classic no taps": (lambda: xconv.conv_forward(X, ones(6, 4, 0, 3), B), ValueError, "`W` must have"),
    "classic fields": (
        lambda: xconv.col2im_indices(ones(9, 25), (1, 1, 5, 5), -3, -3),
        ValueError,
        "`field_height` must be at least 1, got -3",
    ),
    "classic stride": (lambda: xconv.conv_forward(X, W, B, stride=4), ValueError, "Invalid output dimension!"),
    "classic width": (lambda: xconv.conv_forward(ones(1, 4, 7, 8), W, B, stride=2), ValueError, "8 + 2 * 1 - 3 = 7"),
    "classic columns": (lambda: xconv.im2col_indices(X, 3, 3, stride=4), ValueError, "Invalid output dimension!"),
    "classic fold": (
        lambda: xconv.col2im_indices(ones(9, 9), (1, 1, 5, 5), stride=3),
        ValueError,
        "Invalid output dimension!",
    ),
    "classic fold shape": (
        lambda: xconv.col2im_indices(ones(9, 9), (1, 1, 5, 5)),
        ValueError,
        "`cols` must have shape (9, 25)",
    ),
    "classic fold rank": (
        lambda: xconv.col2im_indices(ones(9, 9), (1, 5, 5)),
        ValueError,
        "`x_shape` must be (D, C, H, W)",
    ),
    "classic rank": (
        lambda: xconv.conv_forward(ones(4, 7, 7), W, B),
        ValueError,
        "`X` must have four axes, got shape (4, 7, 7): write `X[None]` for one image",
    ),
    "classic filters": (
        lambda: xconv.conv_forward(X, ones(3, 3), B),
        ValueError,
        "`W` must have four axes, got shape (3, 3): write `W[None, None]` for one filter of one channel",
    ),
    "classic windows": (lambda: xconv.im2col_indices(X[0], 3, 3), ValueError, "write `X[None]` for one image"),
    "classic bias": (lambda: xconv.conv_forward(X, W, ones(1, 6)), ValueError, "`b` must have shape (6, 1) or (6,)"),
    "classic stride 0": (lambda: xconv.conv_forward(X, W, B, stride=0), ValueError, "`stride` must be at least 1"),
    "classic stride 1.5": (
        lambda: xconv.conv_forward(X, W, B, stride=1.5),
        TypeError,
        "`stride` must be made of integers",
    ),
    "classic field 2.0": (
        lambda: xconv.im2col_indices(X, 2.0, 2),
        TypeError,
        "`field_height` must be made of integers",
    ),
    "classic fold int": (lambda: xconv.col2im_indices(ones(9, 9), 7), ValueError, "`x_shape` must be a sequence"),
    "classic cache": (
        lambda: xconv.conv_backward(DY, None),
        TypeError,
        "`cache` must be what conv_forward returned, (X, W, b, stride, padding) with or without X_col, got NoneType",
    ),
    "classic cache of four": (lambda: xconv.conv_backward(DY, (X, W, B, 1)), TypeError, "X_col, got tuple of 4"),
    "classic cache of no arrays": (lambda: xconv.conv_backward(DY, [1] * 5), TypeError, "`X` must be"),
    "classic cache of other filters": (
        lambda: xconv.conv_backward(DY, (X, W[:1], B, 1, 1)),
        ValueError,
        "`b` must have shape (1, 1) or (1,)",
    ),
    "classic dout": (
        lambda: xconv.conv_backward(DY, xconv.conv_forward(X, W, B)[1]),
        ValueError,
        "`dout` must have shape (2, 6, 7, 7)",
    ),
    "classic field": (lambda: xconv.im2col_indices(X, 0, 3), ValueError, "at least 1"),
    # memory
    "result": (
        conv(THREE, THREE, padding=10**15),
        MemoryError,
        "the result must fit into memory, got (1, 1, 2000000000000001) of float32, which takes 8 PB",
    ),
    "result and what to do": (conv(THREE, THREE, padding=10**15), MemoryError, "8 PB: take smaller sizes, or Dask arr"),
    "result of exabytes": (conv(THREE, THREE, padding=10**18), MemoryError, "takes 8 EB"),
    "result of a wide dtype": (
        conv(ones(1, 1, 1, dtype=complex), ones(1, 1, 1, dtype=complex), padding=5 * 10**12),
        MemoryError,
        "of complex128, which takes 160 TB",
    ),
    "result with channels last": (
        conv(ones(1, 1, 1), ones(3, 1, 1), padding=10**15, layout="channels_last"),
        MemoryError,
        "got (1, 2000000000000001, 3) of float64",
    ),
    "x_shape of petabytes": (
        lambda: xconv.conv_input_grad(ONE, THREE, (1, 1, 10**16), stride=10**16),
        MemoryError,
        "got (1, 1, 10000000000000000) of float32, which takes 40 PB",
    ),
    "w_shape of petabytes": (
        lambda: xconv.conv_weight_grad(ONE, THREE, (1, 1, 10**15), padding=((0, 10**15 - 3),)),
        MemoryError,
        "got (1, 1, 1000000000000000) of float32, which takes 4 PB",
    ),
    "w_shape beyond memory": (
        lambda: xconv.conv_weight_grad(ONE, THREE, (1, 1, 10**30), padding=((0, 10**30 - 3),)),
        ValueError,
        "be addressed",
    ),
    "transpose of petabytes": (
        lambda: xconv.conv_transpose(ones(1, 1, 2), ONE, stride=10**15),
        MemoryError,
        "got (1, 1, 1000000000000001) of float64, which takes 8 PB",
    ),
    "windows of petabytes": (lambda: xconv.im2col(THREE, 3, padding=10**14), MemoryError, "takes 2.4 PB"),
    "fold of petabytes": (
        lambda: xconv.col2im(ones(1, 1, 1, 1), 10**15, stride=10**15),
        MemoryError,
        "got (1, 1, 1000000000000000) of float64",
    ),
    "temporary memory": (
        conv(ones(18, 6, 5), ones(3, 2, 5), groups=3, dilation=10**13, padding=((0, 4 * 10**13),), pad_mode="edge"),
        MemoryError,
        "the temporary memory of this call must fit into memory: it takes",
    ),
    "temporary memory beyond what NumPy counts": (
        conv(
            ones(1, 4, 2, 1),
            ones(2, 2, 8, 7),
            groups=2,
            dilation=10**12,
            padding=((0, 10**13),) * 2,
            pad_mode="wrap",
            stride=10**12,
        ),
        MemoryError,
        "EB, so take smaller sizes",
    ),
    "classic petabytes": (lambda: xconv.conv_forward(X, W, B, padding=10**7), MemoryError, "of float64, which takes"),
    "classic windows of petabytes": (lambda: xconv.im2col_indices(X, 3, 3, 10**7), MemoryError, "of float64, which"),
    "classic fold of petabytes": (
        lambda: xconv.col2im_indices(ones(1, 4), (1, 1, 10**8 + 1, 10**8 + 1), 1, 1, padding=0, stride=10**8),
        MemoryError,
        "got (1, 1, 100000001, 100000001) of float64, which takes 80 PB",
    ),
    # settings
    "workspace 0": (lambda: xconv.config(workspace=0), ValueError, "`workspace` must be at least 1"),
    "workspace 1.5": (lambda: xconv.config(workspace=1.5), TypeError, "`workspace` must be made of integers"),
    "threads": (lambda: xconv.config(threads=-1), ValueError, "`threads` must be at least 1"),
    "precision": (lambda: xconv.config(precision="half"), ValueError, "`precision` must be one of ('ieee', 'tf32')"),
    "numerics": (lambda: xconv.config(numerics="exact"), ValueError, "`numerics` must be one of ('fast', 'strict')"),
    "unknown setting": (lambda: xconv.config(speed=11), TypeError, "speed"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_the_table_is_long_enough():
    assert len(BAD) >= 40


def test_earlier_good_calls_do_not_hide_a_bad_one():
    """Calls are remembered by their arguments, and 1.0 == True == 1."""
    xconv.conv(X, W, stride=1, groups=1, padding=(1, 1))
    for options in ({"stride": 1.0}, {"groups": 1.0}, {"padding": (1.0, 1)}):
        with pytest.raises(TypeError):
            xconv.conv(X, W, **options)


def test_two_libraries():
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(
        TypeError, match=r"`x` and `w` must be of one array library, got numpy\.ndarray and .*: convert one of them"
    ):
        xconv.conv(X, strict.asarray(W))


def test_two_devices():
    strict = pytest.importorskip("array_api_strict")
    x = strict.asarray(X, device=strict.Device("device1"))
    with pytest.raises(TypeError, match="`x` and `w` must be on one device"):
        xconv.conv(x, strict.asarray(W))
    y = xconv.conv(x, strict.asarray(W, device=x.device), padding=1)
    assert y.device == x.device


def test_dtypes_of_other_libraries():
    strict = pytest.importorskip("array_api_strict")
    x, w = strict.asarray(X), strict.asarray(W)
    with pytest.raises(
        TypeError, match="`dtype` must be an integer, real or complex floating dtype of array_api_strict"
    ):
        xconv.conv(x, w, dtype="nonsense")
    for narrow in (
        "float8_e4m3fn",
        "float4_e2m1fn",
        "int4",
        "uint2",
    ):  # of libraries that store more than they multiply
        assert Backend(strict).kind(SimpleNamespace(name=narrow)) is None
    with pytest.raises(TypeError, match=r"`x` .*bool"):
        xconv.conv(x > 0, w > 0)
    with pytest.raises(TypeError, match=r"must have a common one, .*: convert one of them"):
        xconv.conv(strict.astype(x, strict.uint64), strict.astype(w, strict.int64))


def test_no_memory_before_the_checks():
    """A convolution of a petabyte is refused for its shape, not for its size."""
    huge = np.broadcast_to(1.0, (2**20, 4, 2**14, 2**14))
    with pytest.raises(ValueError, match="`groups`"):
        xconv.conv(huge, W, groups=5)


@pytest.mark.parametrize("name", ["array_api_strict", "torch"])
def test_no_memory_of_another_library(name):
    xp = pytest.importorskip(name)
    x = xp.ones((1, 1, 3), dtype=xp.float32)
    with pytest.raises(MemoryError, match=r"the result must fit into memory, got \(1, 1, 2000000000000001\) .* 8 PB"):
        xconv.conv(x, x, padding=10**15)


def test_what_some_memory_may_hold():
    check_memory((2**44,), 8, "float64")
    with pytest.raises(MemoryError, match=r"got \(17592186044417,\) of float64, which takes 141 TB"):
        check_memory((2**44 + 1,), 8, "float64")


def test_no_memory_for_a_result_that_is_none():
    """Whatever the other sizes are."""
    assert xconv.conv(np.ones((0, 1, 3)), np.ones((1, 1, 3)), padding=10**15).shape == (0, 1, 2 * 10**15 + 1)


def test_what_to_do_where_memory_is_short(monkeypatch):
    """The library's own error, with a note."""

    def short(*_):
        msg = "unable"
        raise MemoryError(msg)

    monkeypatch.setattr(NumpyBackend, "assemble", short)
    with pytest.raises(MemoryError, match="unable") as caught:
        xconv.conv(X, W)
    assert "smaller sizes" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("dy", "options"),
    [
        ((2, 4, 6, 6), {}),
        ((2, 4, 5, 5), {"padding": "most"}),
        ((2, 4, 6, 6), {"stride": 2, "layout": "channels_first"}),
    ],
)
def test_arrays_of_as_many_channels_do_not_look_exchanged(dy, options):
    """Where they fit as they are, something else is wrong."""
    with pytest.raises(ValueError, match=r"`(dy|padding)` must be|`dy` must have") as caught:
        xconv.conv_weight_grad(ones(*dy), X, (4, 4, 3, 3), **options)
    assert "exchanged" not in str(caught.value)
