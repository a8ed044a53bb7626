"""The classic four: the functions of the blog post that this library began as, on any array library.

Images are ``D x C x H x W``, filters ``NF x C x HF x WF``, and columns ``(C*HF*WF) x (H'*W'*D)`` with the image
index running fastest. (A. Kristiadi, *Convnet: Implementing Convolution Layer with Numpy*, 2016.)
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from ._api import col2im, im2col
from ._arguments import lacking, suggest
from ._axis import Axis
from ._fitting import check_fits, planned
from ._planner import Options
from ._typing import Array, Shape
from ._values import integer, shape
from .backends import backend_of

#: The axes of columns, ``(c, *kernel, *out, n)``.
COLUMNS = (1, 2, 3, 4, 5, 0)


class Cache(NamedTuple):
    """What `conv_backward` needs of the forward pass."""

    X: Array
    W: Array
    b: Array
    stride: int
    padding: int


def conv_forward(X: Array, W: Array, b: Array, stride: int = 1, padding: int = 1) -> tuple[Array, Cache]:
    """Forward pass of a convolution layer.

    Parameters
    ----------
    X : array, shape (D, C, H, W)
        Images.
    W : array, shape (NF, C, HF, WF)
        Filters.
    b : array, shape (NF, 1) or (NF,)
        Bias.
    stride, padding : int
        The same on both axes; the padding is zeros on every side.

    Returns
    -------
    out : array, shape (D, NF, H', W')
        With ``H' = (H - HF + 2 * padding) / stride + 1``.
    cache : tuple
        For :func:`conv_backward`. It keeps `X` and `W`, and no columns.

    Raises
    ------
    ValueError
        "Invalid output dimension!" where the windows do not tile the padded images exactly, or for shapes that do
        not fit.
    TypeError
        For arguments that are no arrays of one library.

    Notes
    -----
    Unlike :func:`conv`, this takes integers together with floating-point numbers, and converts them.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> X, W, b = np.ones((5, 1, 10, 10)), np.ones((20, 1, 3, 3)), np.zeros((20, 1))
    >>> out, cache = xconv.conv_forward(X, W, b)
    >>> out.shape
    (5, 20, 10, 10)
    """
    backend = backend_of({"X": X, "W": W, "b": b})
    shapes = x_shape, w_shape = backend.shape("X", X), backend.shape("W", W)
    check = partial(_layer, b_shape=backend.shape("b", b), padding=padding, stride=stride)
    try:
        stride, padding, _ = check(*shapes)
    except ValueError as error:
        suggest(error, [("`X` and `W` may be exchanged", lambda: check(w_shape, x_shape))])
        raise
    options = Options(stride=stride, padding=padding, mixed=True)
    schedule = planned(backend, {"X": X, "W": W, "b": b}, x_shape, w_shape, options)
    check_fits(backend, schedule, schedule.y_shape)
    y = schedule.run("forward", X, W, backend.xp.reshape(b, w_shape[:1]))
    return y, Cache(X, W, b, stride, padding)


def conv_backward(dout: Array, cache: Sequence[Any]) -> tuple[Array, Array, Array]:
    """Backward pass of a convolution layer.

    Parameters
    ----------
    dout : array, shape (D, NF, H', W')
        Gradient with respect to the output of :func:`conv_forward`.
    cache : tuple
        What that function returned with it; or any that begins with ``X, W, b, stride, padding``, as the post's own.

    Returns
    -------
    dX, dW, db : array
        Gradients with respect to X, W and b, of their shapes. `dX` has the common dtype of `dout` and W, `dW` that of
        `dout` and X, and `db` that of `dout`; integers take the dtype of floating-point numbers beside them.

    Raises
    ------
    ValueError, TypeError
        For a `dout` that does not belong to the cache, and for what is no such cache.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> X, W, b = np.ones((5, 1, 10, 10)), np.ones((20, 1, 3, 3)), np.zeros((20, 1))
    >>> out, cache = xconv.conv_forward(X, W, b)
    >>> [gradient.shape for gradient in xconv.conv_backward(np.ones_like(out), cache)]
    [(5, 1, 10, 10), (20, 1, 3, 3), (20, 1)]
    """
    if not isinstance(cache, (tuple, list)) or len(cache) not in {5, 6}:
        got = type(cache).__qualname__ + (f" of {len(cache)}" if isinstance(cache, (tuple, list)) else "")
        msg = f"`cache` must be what conv_forward returned, (X, W, b, stride, padding) with or without X_col, got {got}"
        raise TypeError(msg)
    X, W, b, stride, padding = cache[:5]  # columns that are kept beside these are not needed
    backend = backend_of({"dout": dout, "X": X, "W": W, "b": b})
    shapes = x_shape, w_shape = backend.shape("X", X), backend.shape("W", W)
    expected = (x_shape[0], w_shape[0], *_layer(*shapes, backend.shape("b", b), padding, stride).out)
    if backend.shape("dout", dout) != expected:
        msg = f"`dout` must have shape {expected}, got {tuple(dout.shape)}"
        raise ValueError(msg)
    options = Options(stride=stride, padding=padding, mixed=True)
    dX = planned(backend, {"dout": dout, "W": W}, *shapes, options).run("input_grad", dout, W)
    dW = planned(backend, {"dout": dout, "X": X}, *shapes, options).run("weight_grad", dout, X)
    dtype = dW.dtype if backend.kind(dout.dtype) == "integer" else dout.dtype
    db = backend.astype(backend.xp.sum(dout, axis=(0, 2, 3), dtype=backend.accumulator(dtype)), dtype)
    return dX, dW, backend.xp.reshape(db, backend.shape("b", b))


def im2col_indices(X: Array, field_height: int, field_width: int, padding: int = 1, stride: int = 1) -> Array:
    """Unfold images into a matrix with one column per window.

    Parameters
    ----------
    X : array, shape (D, C, H, W)
        Images.
    field_height, field_width : int
        Size of the window.
    padding, stride : int
        The same on both axes.

    Returns
    -------
    array, shape (C * field_height * field_width, H' * W' * D)
        The image index runs fastest along the columns.

    Raises
    ------
    ValueError
        "Invalid output dimension!" where the windows do not tile the padded images exactly, or for shapes that do
        not fit.
    TypeError
        For an `X` that is no array.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> xconv.im2col_indices(np.ones((5, 1, 10, 10)), 3, 3).shape
    (9, 500)
    """
    backend = backend_of({"X": X})
    x_shape = _four("X", backend.shape("X", X), "image")
    stride, padding, _ = _windows(x_shape, field_height, field_width, padding, stride)
    cols = im2col(X, (field_height, field_width), stride=stride, padding=padding, axes=COLUMNS)
    c, kh, kw, oh, ow, n = cols.shape
    return backend.xp.reshape(cols, (c * kh * kw, oh * ow * n))


def col2im_indices(
    cols: Array, x_shape: Shape, field_height: int = 3, field_width: int = 3, padding: int = 1, stride: int = 1
) -> Array:
    """Fold a matrix of windows back into images by summation: the adjoint of :func:`im2col_indices`.

    Parameters
    ----------
    cols : array, shape (C * field_height * field_width, H' * W' * D)
        Columns, the image index running fastest.
    x_shape : tuple of int
        Shape (D, C, H, W) of the images.
    field_height, field_width, padding, stride : int
        As given to `im2col_indices`.

    Returns
    -------
    array, shape `x_shape`
        The sum of all windows, each at its place.

    Raises
    ------
    ValueError
        "Invalid output dimension!" where the windows do not tile the padded images exactly, or for shapes that do
        not fit.
    TypeError
        For `cols` that are no array.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> cols = xconv.im2col_indices(np.ones((1, 1, 4, 4)), 3, 3)
    >>> xconv.col2im_indices(cols, (1, 1, 4, 4))[0, 0]
    array([[4., 6., 6., 4.],
           [6., 9., 9., 6.],
           [6., 9., 9., 6.],
           [4., 6., 6., 4.]])
    """
    backend = backend_of({"cols": cols})
    x_shape = shape("x_shape", x_shape)
    if len(x_shape) != 4:
        msg = f"`x_shape` must be (D, C, H, W), got {x_shape}"
        raise ValueError(msg)
    stride, padding, (oh, ow) = _windows(x_shape, field_height, field_width, padding, stride)
    n, c, height, width = x_shape
    expected = (c * field_height * field_width, oh * ow * n)
    if backend.shape("cols", cols) != expected:
        msg = f"`cols` must have shape {expected} for images of shape {tuple(x_shape)}, got {tuple(cols.shape)}"
        raise ValueError(msg)
    windows = backend.xp.reshape(cols, (c, field_height, field_width, oh, ow, n))
    return col2im(windows, (height, width), padding=padding, stride=stride, axes=COLUMNS)


def _four(name: str, shape: Shape, one: str) -> Shape:
    """The shape of images or filters; ValueError for another number of axes."""
    if len(shape) != 4:
        msg = f"`{name}` must have four axes, got shape {shape}"
        raise ValueError(msg + lacking(name, 4 - len(shape), one))
    return shape


def _layer(x_shape: Shape, w_shape: Shape, b_shape: Shape, padding: int, stride: int) -> "_Windows":
    """The windows of a layer; ValueError for shapes that do not fit."""
    x_shape, w_shape = _four("X", x_shape, "image"), _four("W", w_shape, "filter")
    filters = w_shape[0]
    if b_shape not in {(filters, 1), (filters,)}:
        msg = f"`b` must have shape ({filters}, 1) or ({filters},), got {b_shape}"
        raise ValueError(msg)
    if w_shape[1] != x_shape[1] or 0 in w_shape[2:]:
        msg = f"`W` must have the {x_shape[1]} channels of `X`, and a size, got shape {w_shape}"
        raise ValueError(msg)
    return _windows(x_shape, w_shape[2], w_shape[3], padding, stride)


class _Windows(NamedTuple):
    """How the windows lie: the options as ints, and how many there are on both axes."""

    stride: int
    padding: int
    out: tuple[int, ...]


def _windows(x_shape: Shape, field_height: int, field_width: int, padding: int, stride: int) -> _Windows:
    """ValueError unless the windows tile the padded images exactly."""
    given = {"stride": stride, "field_height": field_height, "field_width": field_width}
    numbers = {name: integer(name, value) for name, value in given.items()}
    for name, number in numbers.items():
        if number < 1:
            msg = f"`{name}` must be at least 1, got {number}"
            raise ValueError(msg)
    stride, *fields = numbers.values()
    padding = integer("padding", padding)
    axes = [Axis(*sizes, stride, 1, padding, padding) for sizes in zip(x_shape[2:], fields, strict=True)]
    for axis in axes:
        if (axis.padded - axis.extent) % stride:
            msg = (
                f"Invalid output dimension! `stride` {stride} must divide the room of the window, "
                f"{axis.size} + 2 * {padding} - {axis.kernel} = {axis.padded - axis.extent}"
            )
            raise ValueError(msg)
    return _Windows(stride, padding, tuple(axis.out for axis in axes))
