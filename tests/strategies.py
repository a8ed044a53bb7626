"""Geometries for hypothesis: every option that a convolution has, in sizes that plain loops can follow."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from oracle import W_LAYOUTS


@dataclass(frozen=True)
class Case:
    x_shape: tuple
    w_shape: tuple
    options: dict = field(hash=False)
    seed: int = 0
    layout: str = "channels_first"
    w_layout: str = "oi..."

    def integers(self, *shapes, limit=7):
        """Arrays of small integers in float64: sums of their products are exact in any order."""
        rng = np.random.default_rng(self.seed)
        return [rng.integers(-limit, limit + 1, shape).astype(np.float64) for shape in shapes]

    def in_layout(self, a):
        return np.moveaxis(a, 1, -1) if self.layout == "channels_last" else a

    def shape_in_layout(self, shape):
        return (shape[0], *shape[2:], shape[1]) if self.layout == "channels_last" else tuple(shape)


@st.composite
def cases(draw, max_rank=3):
    rank = draw(st.integers(1, max_rank))
    limit = {1: 12, 2: 7, 3: 4}[rank]
    groups = draw(st.integers(1, 3))
    c_group, f_group = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    mode = draw(st.sampled_from(["constant", "value", "edge", "reflect", "symmetric", "wrap"]))
    mode, value = ("constant", 5) if mode == "value" else (mode, 0)
    size, kernel, stride, dilation, padding = [], [], [], [], []
    for _ in range(rank):
        k, d = draw(st.integers(1, 3 if rank == 3 else 4)), draw(st.integers(1, 3))
        extent = (k - 1) * d + 1
        n = draw(st.integers(0 if mode == "constant" else 1, limit))
        lo = draw(st.integers(-2, 4))
        hi = draw(st.integers(max(-2, extent - n - lo), max(4, extent - n - lo)))
        size.append(n)
        kernel.append(k)
        stride.append(draw(st.integers(1, 5)))
        dilation.append(d)
        padding.append((lo, hi))
    if mode != "constant" and 0 in size:
        mode = "constant"
    return Case(
        (draw(st.integers(0, 3)), groups * c_group, *size),
        (groups * f_group, c_group, *kernel),
        {
            "stride": tuple(stride),
            "padding": tuple(padding),
            "dilation": tuple(dilation),
            "groups": groups,
            "pad_mode": mode,
            "pad_value": value,
        },
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from(["channels_first", "channels_last"])),
        draw(st.sampled_from(W_LAYOUTS)),
    )
