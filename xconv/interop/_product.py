r"""What the bridges share: a convolution and its gradients as three products that are one another's derivatives.

The number

.. math:: T = \sum y \cdot \mathrm{conv}(x, w)

is linear in each of x, w and y. Its derivative in y is the convolution, that in x the input gradient, that in w the
weight gradient: each is a product of two of the three and gives the third. So the gradient of a product in one operand
is again a product, of the other operand and of the gradient that comes back, which takes the place of the result; and
so are all gradients of gradients. Nothing is conjugated: the products are linear for complex numbers, too.

Where the padding holds a value it is linear in x but for a term that has none of it. So the derivative in x, and all
those of that, are as if the value were 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

from array_api_compat import array_namespace

from .. import _config
from .._api import conv, conv_input_grad, conv_transpose, conv_weight_grad
from .._arguments import TRANSPOSED
from .._planner import Options, geometry_of
from .._typing import Array, DType, Ints, Layout, Padding, PadMode, Shape, WLayout
from .._values import frozen

#: What each product is a product of.
OPERANDS = {"y": ("x", "w"), "x": ("y", "w"), "w": ("y", "x")}


class _Options(TypedDict, total=False):
    stride: Ints
    padding: Padding
    dilation: Ints
    groups: int
    layout: Layout
    w_layout: WLayout
    dtype: DType | None
    algorithm: str


class ConvOptions(_Options, total=False):
    """The keyword arguments of `conv`."""

    pad_mode: PadMode
    pad_value: complex


class TransposeOptions(_Options, total=False):
    """The keyword arguments of `conv_transpose`."""

    output_padding: Ints
    output_size: Ints | None


@dataclass(frozen=True)
class Product:
    """One of the three products, with everything but its arrays.

    A user calls "y", a convolution, or "x", a transposed one.
    """

    #: "y", "x" or "w".
    result: str
    options: Mapping[str, Any]
    #: Those that surrounded the call hold for its gradients as well, which another thread may compute.
    settings: _config.Settings = field(default_factory=_config.current)
    #: Those of the operand that this is the gradient of; None for what the user called.
    shape: Shape | None = None
    dtype: DType | None = None

    def __call__(self, a: Array, b: Array, bias: Array | None = None) -> Array:
        """Multiply the operands, in the order of `OPERANDS`."""
        with _config.applied(self.settings):
            if self.shape is None:
                called = conv if self.result == "y" else conv_transpose
                return called(a, b, bias, **self.options)
            if self.result == "y":
                return cast(conv(a, b, **self.options), self.dtype)
            adjoint = conv_input_grad if self.result == "x" else conv_weight_grad  # conjugates b
            return cast(adjoint(a, b.conj(), self.shape, **self.options), self.dtype)

    def gradient(self, at: int, operand: Array, g: Array, other: Array) -> tuple["Product", Array, Array]:
        """The gradient in the operand at 0 or 1: a product with its operands.

        `g` is the gradient that comes back, and `other` the other operand.
        """
        places = OPERANDS[self.result]
        found = {self.result: g, places[1 - at]: other}
        first, second = OPERANDS[places[at]]
        shape, dtype = tuple(operand.shape), operand.dtype
        pair = (operand, other) if at == 0 else (other, operand)
        gone = {"pad_value"} if places[at] == "x" else set()
        options = {name: value for name, value in self._of_convolution(*pair).items() if name not in gone}
        product = replace(self, result=places[at], options=options, shape=shape, dtype=dtype)
        return product, found[first], found[second]

    def _of_convolution(self, x: Array, w: Array) -> Mapping[str, Any]:
        """The options of the convolution that this is a gradient of: its padding leads to `x`, and to no more."""
        if self.result != "x" or self.shape is not None:
            return self.options
        options = {name: value for name, value in self.options.items() if value is not None}
        sizes = {name: frozen(name, value) for name, value in options.items() if name not in {"dtype", "algorithm"}}
        g = geometry_of(tuple(x.shape), tuple(w.shape), Options(**{"output_padding": 0, "w_layout": "io...", **sizes}))
        options = {name: value for name, value in options.items() if name not in {"output_padding", "output_size"}}
        order = options.get("w_layout", "io...").translate(TRANSPOSED)  # as the convolution calls it
        return {**options, "w_layout": order, "padding": tuple((axis.lo, axis.hi) for axis in g.axes)}

    def all_but_channels(self, rank: int) -> tuple[int, ...]:
        """The axes of a result over which the gradient that comes back is summed for that of a bias."""
        channels = rank - 1 if self.options.get("layout") == "channels_last" else 1
        return tuple(axis for axis in range(rank) if axis != channels)


def cast(x: Array, dtype: DType) -> Array:
    """`x` in the dtype of what it is the gradient of, which may be narrower; of a real number it is real."""
    if x.dtype == dtype:
        return x
    xp = array_namespace(x)
    if xp.isdtype(x.dtype, "complex floating") and not xp.isdtype(dtype, "complex floating"):
        x = xp.real(x)
    return xp.astype(x, dtype)
