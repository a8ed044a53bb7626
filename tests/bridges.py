"""What the tests of the bridges share: convolutions, and a look at what a bridge calls."""

import numpy as np

import xconv
from xconv.interop import _product

#: Function, x, w and options.
CASES = {
    "1d": ("conv", (2, 2, 5), (3, 2, 3), {}),
    "2d-all": (
        "conv",
        (2, 4, 5, 6),
        (6, 2, 3, 2),
        {"stride": [2, 1], "padding": ((1, 2), (0, -1)), "dilation": (1, 2), "groups": 2},
    ),
    "3d": ("conv", (1, 2, 3, 4, 3), (2, 2, 2, 3, 2), {"padding": "same", "stride": 2}),
    "depthwise": ("conv", (2, 3, 5, 4), (6, 1, 3, 3), {"padding": 1, "groups": 3}),
    "pointwise": ("conv", (2, 3, 4, 5), (4, 3, 1, 1), {}),
    "edge": ("conv", (1, 2, 4, 3), (2, 2, 2, 3), {"padding": ((2, 0), (1, 2)), "pad_mode": "edge"}),
    "reflect": ("conv", (1, 2, 7), (2, 1, 3), {"padding": ((3, 1),), "pad_mode": "reflect", "stride": 2, "groups": 2}),
    "symmetric": ("conv", (1, 2, 3), (2, 2, 3), {"padding": ((7, 2),), "pad_mode": "symmetric"}),
    "wrap": ("conv", (1, 2, 4), (2, 2, 3), {"padding": ((4, 2),), "pad_mode": "wrap"}),
    "value": ("conv", (1, 2, 4, 5), (2, 2, 2, 3), {"padding": ((2, 1), (-1, 3)), "stride": (1, 2), "pad_value": 3}),
    "last": ("conv", (2, 5, 4, 2), (3, 2, 2, 3), {"layout": "channels_last", "padding": 1, "stride": (1, 2)}),
    "filters": ("conv", (2, 5, 4, 4), (2, 3, 2, 6), {"layout": "channels_last", "w_layout": "...io", "groups": 2}),
    "transpose": ("conv_transpose", (2, 4, 4), (4, 3, 3), {}),
    "transpose-all": (
        "conv_transpose",
        (2, 4, 4, 3),
        (4, 3, 3, 2),
        {"stride": (2, 3), "padding": (1, 0), "dilation": (2, 1), "output_padding": (1, 2), "groups": 2},
    ),
    "transpose-beyond": (
        "conv_transpose",
        (2, 2, 4, 2),
        (2, 1, 2, 3),
        {"stride": (2, 1), "padding": ((1, 0), (0, 1)), "dilation": (4, 3), "output_padding": (3, 2), "groups": 2},
    ),
    "transpose-size": (
        "conv_transpose",
        (1, 3, 4, 2),
        (2, 3, 2, 2),
        {"stride": 2, "dilation": [1, 3], "padding": 1, "output_size": [5, 10], "layout": "channels_last"},
    ),
    "transpose-same": ("conv_transpose", (1, 3, 4), (3, 2, 4), {"padding": "same", "stride": 2}),
    "transpose-filters": ("conv_transpose", (2, 4, 4), (3, 3, 4), {"w_layout": "...oi", "stride": 2}),
    "transpose-last": (
        "conv_transpose",
        (1, 4, 3),
        (3, 2, 3),
        {"layout": "channels_last", "stride": 2, "padding": ((1, 0),)},
    ),
}
#: Algorithms that round, for one geometry.
ROUNDING = {
    name: ("conv", (1, 2, 5, 4), (2, 2, 3, 3), {"padding": 1, "algorithm": name}) for name in ("winograd", "fft")
}


def shapes(case):
    """Those of x, w, b and y."""
    function, x_shape, w_shape, options = case
    y = getattr(xconv, function)(np.zeros(x_shape), np.zeros(w_shape), **options)
    channels = y.shape[-1 if options.get("layout") == "channels_last" else 1]
    return x_shape, w_shape, (channels,), y.shape


def calls(monkeypatch):
    """A list that grows by each of xconv's functions that a bridge calls: its name, the settings, and the options."""
    seen = []

    def spied(name):
        function = getattr(xconv, name)

        def spy(*args, **options):
            seen.append((name, xconv._config.current(), options))
            return function(*args, **options)

        return spy

    for name in ("conv", "conv_input_grad", "conv_weight_grad", "conv_transpose"):
        monkeypatch.setattr(_product, name, spied(name))
    return seen
