"""Pooling: the largest element of every window, or its mean, and their gradients."""

from collections.abc import Sequence
from typing import Any

from ._arguments import check_counts, check_ranks
from ._fitting import check_fits, planned
from ._planner import Options
from ._typing import Array, Ints, Layout, Padding, Shape
from ._values import frozen, per_axis, shape
from .backends import Backend, backend_of
from .schedules import Schedule


def max_pool(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    layout: Layout = "channels_first",
) -> Array:
    """Take the largest element of every window.

    Parameters
    ----------
    x : array, shape (n, c, *size)
        The input, of any array library and any spatial rank from 1: integers or real numbers. It is never written to.
        A single image needs a batch axis, ``x[None]``: without it, its channels are taken for the batch.
    kernel_size : int or tuple of int
        Taps of the window, for all axes or for each. A tuple of another length than there are spatial axes is an error.
    stride : int or tuple of int, optional
        Steps between the windows; by default the kernel size, so that windows neither overlap nor leave gaps.
    padding, dilation, layout
        As in :func:`conv`. What is padded is below all numbers, and comes out only of a window that sees nothing else:
        as minus infinity, or the least of the integers.

    Returns
    -------
    array, shape (n, c, *out)
        With `out` as in :func:`conv`; of the library, device and dtype of `x`. NaN where a window has one.

    Raises
    ------
    ValueError
        For shapes, sizes and options that do not fit, a kernel larger than the padded input, or a workspace too small.
    TypeError
        For what is no array, booleans, and complex numbers, which have no order.
    MemoryError
        For a result that is larger than any memory.

    See Also
    --------
    max_pool_grad : The gradient.
    avg_pool : The mean of every window.

    Notes
    -----
    Axis by axis: as many comparisons per output as the kernel is long on all axes together, on NumPy arrays the
    logarithm of that for long axes; and on CuPy arrays as many as it has taps. The temporary memory is within
    ``config(workspace=)``. The ``ceil_mode`` of PyTorch's ``max_pool2d`` is padding at the end of an axis.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> x = np.arange(16).reshape(1, 1, 4, 4)
    >>> xconv.max_pool(x, 2)[0, 0]
    array([[ 5,  7],
           [13, 15]])
    >>> xconv.max_pool(x, 3, stride=2, padding=1)[0, 0]
    array([[ 5,  7],
           [13, 15]])
    """
    given = {"x": x}
    backend = backend_of(given)
    x_shape = backend.shape("x", x)
    schedule = _pooled("max_pool", backend, given, x_shape, kernel_size, stride, padding, dilation, layout)
    check_fits(backend, schedule, schedule.y_shape)
    return schedule.run("max_pool", x)


def max_pool_grad(
    dy: Array,
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    layout: Layout = "channels_first",
) -> Array:
    """Gradient of :func:`max_pool` with respect to its input.

    Each element of `dy` is added where the largest element of its window was read. NaN counts as largest. Of several
    equal elements, or several NaN, that is the first in the order of the axes. A window that saw nothing but padding
    gives nothing back.

    Parameters
    ----------
    dy : array, shape (n, c, *out)
        Gradient with respect to the result.
    x : array, shape (n, c, *size)
        The input.
    kernel_size, stride, padding, dilation, layout
        As given to `max_pool`.

    Returns
    -------
    array, shape (n, c, *size)
        Of the library and device of `dy`, and of the common dtype of `dy` and `x`.

    Raises
    ------
    ValueError
        Where :func:`max_pool` raises it, and where `dy` has not the shape of that pooling's result.
    TypeError, MemoryError
        Where :func:`max_pool` raises it.

    Notes
    -----
    The windows are searched again, so nothing has to be kept from `max_pool`: as many comparisons per output as the
    kernel is long on all axes together, for libraries without a way of their own as many as it has taps; and one
    addition per element of `dy`, in an order that depends on nothing but the shapes. float16 and bfloat16 are summed in
    float32.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> x = np.array([[[1.0, 3, 2, 3, 0]]])
    >>> xconv.max_pool_grad(np.array([[[1.0, 10, 100]]]), x, 3, stride=1)
    array([[[  0.,  11.,   0., 100.,   0.]]])
    """
    given = {"dy": dy, "x": x}
    backend = backend_of(given)
    x_shape = backend.shape("x", x)
    schedule = _pooled("max_pool_grad", backend, given, x_shape, kernel_size, stride, padding, dilation, layout)
    check_fits(backend, schedule, x_shape)
    return schedule.run("max_pool_grad", dy, x)


def avg_pool(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    count_include_pad: bool = True,
    layout: Layout = "channels_first",
) -> Array:
    """Take the mean of every window.

    Parameters
    ----------
    x : array, shape (n, c, *size)
        The input, of any array library and any spatial rank from 1: real or complex floating-point numbers. It is never
        written to. A single image needs a batch axis, ``x[None]``: without it, its channels are taken for the batch.
    kernel_size : int or tuple of int
        Taps of the window, for all axes or for each. A tuple of another length than there are spatial axes is an error.
    stride : int or tuple of int, optional
        Steps between the windows; by default the kernel size, so that windows neither overlap nor leave gaps.
    padding, dilation, layout
        As in :func:`conv`. The padding is zeros.
    count_include_pad : bool
        Whether the mean is one of as many elements as the kernel has taps, padding included (the default, as in
        PyTorch), or of those elements of `x` alone that the window sees.

    Returns
    -------
    array, shape (n, c, *out)
        With `out` as in :func:`conv`; of the library, device and dtype of `x`.

    Raises
    ------
    ValueError
        For shapes, sizes and options that do not fit, a kernel larger than the padded input, a workspace too small, or
        windows without an element where padding does not count.
    TypeError
        For what is no array, booleans and integers.
    MemoryError
        For a result that is larger than any memory.

    See Also
    --------
    avg_pool_grad : The gradient.
    max_pool : The largest element of every window.

    Notes
    -----
    Sums axis by axis, divided by the number of elements: as many additions per output as the kernel is long on all
    axes together, and on CuPy arrays as many as it has taps. The error is at most
    ``(K + 1) * eps * avg_pool(|x|)`` for windows of K elements; float16 and bfloat16 are summed in float32. The
    temporary memory is within ``config(workspace=)``.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> x = np.array([[[1.0, 3, 5, 7]]])
    >>> xconv.avg_pool(x, 2)
    array([[[2., 6.]]])
    >>> xconv.avg_pool(x, 2, stride=3, padding=1)
    array([[[0.5, 6. ]]])
    >>> xconv.avg_pool(x, 2, stride=3, padding=1, count_include_pad=False)
    array([[[1., 6.]]])
    """
    given = {"x": x}
    backend = backend_of(given)
    x_shape = backend.shape("x", x)
    schedule = _pooled("avg_pool", backend, given, x_shape, kernel_size, stride, padding, dilation, layout)
    _check_counts(count_include_pad, schedule, padding)
    check_fits(backend, schedule, schedule.y_shape)
    return schedule.run("avg_pool", x, count_include_pad=count_include_pad)


def avg_pool_grad(
    dy: Array,
    x_shape: Sequence[int],
    kernel_size: Ints,
    *,
    stride: Ints | None = None,
    padding: Padding = 0,
    dilation: Ints = 1,
    count_include_pad: bool = True,
    layout: Layout = "channels_first",
) -> Array:
    """Gradient of :func:`avg_pool` with respect to its input: the adjoint of that.

    For every `x` and `dy`, ``vdot(dy, avg_pool(x, k)) == vdot(avg_pool_grad(dy, x.shape, k), x)`` up to rounding.

    Parameters
    ----------
    dy : array, shape (n, c, *out)
        Gradient with respect to the result.
    x_shape : sequence of int
        Shape of the input, in the given layout; more than one size can lead to the same output.
    kernel_size, stride, padding, dilation, count_include_pad, layout
        As given to `avg_pool`.

    Returns
    -------
    array, shape `x_shape`
        Of the library, device and dtype of `dy`.

    Raises
    ------
    ValueError
        Where :func:`avg_pool` raises it, and where `dy` has not the shape of that pooling's result.
    TypeError, MemoryError
        Where :func:`avg_pool` raises it.

    Notes
    -----
    A division per element of `dy`, and as many additions as in `avg_pool`. The result is the same in every bit on every
    run.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> xconv.avg_pool_grad(np.array([[[2.0, 6.0]]]), (1, 1, 5), 2)
    array([[[1., 1., 3., 3., 0.]]])
    """
    given = {"dy": dy}
    backend = backend_of(given)
    x_shape = shape("x_shape", x_shape)
    schedule = _pooled("avg_pool_grad", backend, given, x_shape, kernel_size, stride, padding, dilation, layout)
    _check_counts(count_include_pad, schedule, padding)
    check_fits(backend, schedule, x_shape)
    return schedule.run("avg_pool_grad", dy, count_include_pad=count_include_pad)


def _pooled(
    function: str,
    backend: Backend,
    given: dict[str, Array],
    x_shape: Shape,
    kernel_size: Ints,
    stride: Ints | None,
    padding: object,
    dilation: object,
    layout: Any,
) -> Schedule:
    """How to pool: on the geometry of a depthwise convolution; all that does not depend on numbers is checked."""
    if not isinstance(layout, str):
        msg = f"`layout` must be a string, got {layout!r}"
        raise TypeError(msg)
    channels_last = layout == "channels_last"
    if len(x_shape) < 3:
        name = "x" if "x" in given else "x_shape"
        check_ranks(x_shape, x_shape, (name, name), channels_last=channels_last)
    channels = x_shape[-1 if channels_last else 1]
    kernel = per_axis("kernel_size", frozen("kernel_size", kernel_size), len(x_shape) - 2, least=1)
    options = Options(
        kernel if stride is None else frozen("stride", stride),
        frozen("padding", padding),
        frozen("dilation", dilation),
        max(1, channels),
        layout=layout,
        algorithm="gemm",
        pooling=function,
    )
    w_shape = (channels, min(1, channels), *kernel)
    return planned(backend, given, x_shape, w_shape, options, dy=given.get("dy"))


def _check_counts(count_include_pad: Any, schedule: Schedule, padding: object) -> None:
    """TypeError for what is neither True nor False; ValueError for a mean of nothing."""
    if not isinstance(count_include_pad, bool):
        msg = f"`count_include_pad` must be True or False, got {count_include_pad!r}"
        raise TypeError(msg)
    if not count_include_pad:
        check_counts(schedule.geometry, padding)
