"""The three convolutions of ``sigpy.conv`` by xconv: on NumPy and CuPy arrays, for any number of axes.

The filters are flipped, which makes a convolution of xconv's correlation. Both adjoints conjugate, as xconv's gradients
do.
"""

import math

import xconv


def layer(data, filt, mode, strides, multi_channel):
    """The shapes of data and filters as xconv's, with a batch and channels, and the options of the convolution."""
    w = tuple(filt) if multi_channel else (1, 1, *filt)
    axes = len(w) - 2
    *batch, channels = data[:-axes] if multi_channel else (*data[:-axes], 1)
    if mode not in ("full", "valid"):
        msg = f'`mode` must be "full" or "valid", got {mode!r}'
        raise ValueError(msg)
    padding = [taps - 1 for taps in w[2:]] if mode == "full" else 0
    return (math.prod(batch), channels, *data[-axes:]), w, {"stride": strides or 1, "padding": padding}


def flip(w):
    return w[(..., *[slice(None, None, -1)] * (w.ndim - 2))]


def convolve(data, filt, mode="full", strides=None, multi_channel=False):
    x, w, options = layer(data.shape, filt.shape, mode, strides, multi_channel)
    y = xconv.conv(data.reshape(x), flip(filt.reshape(w)), **options)
    return y.reshape(data.shape[: data.ndim - filt.ndim + multi_channel] + y.shape[2 - multi_channel :])


def convolve_data_adjoint(output, filt, data_shape, mode="full", strides=None, multi_channel=False):
    x, w, options = layer(data_shape, filt.shape, mode, strides, multi_channel)
    dy = output.reshape(x[0], w[0], *output.shape[2 - len(w) :])
    return xconv.conv_input_grad(dy, flip(filt.reshape(w)), x, **options).reshape(data_shape)


def convolve_filter_adjoint(output, data, filt_shape, mode="full", strides=None, multi_channel=False):
    x, w, options = layer(data.shape, filt_shape, mode, strides, multi_channel)
    dy = output.reshape(x[0], w[0], *output.shape[2 - len(w) :])
    return flip(xconv.conv_weight_grad(dy, data.reshape(x), w, **options)).reshape(filt_shape)
