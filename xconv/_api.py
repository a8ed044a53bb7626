"""The public functions. Each checks its arguments, asks for a schedule, and runs it."""

from collections.abc import Sequence
from typing import Any

from . import _config
from ._arguments import check_ranks
from ._fitting import check_fits, planned
from ._plan import Plan
from ._planner import Options, Planned
from ._typing import Array, DType, Ints, Layout, Padding, PadMode, WLayout
from ._values import frozen, integer, number, per_axis, permutation, shape
from .backends import Backend, backend_of, model
from .primitives import inverse


def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    pad_mode: PadMode = "constant",
    pad_value: complex = 0,
    layout: Layout = "channels_first",
    w_layout: WLayout = "oi...",
    dtype: DType | None = None,
    algorithm: str = "auto",
) -> Array:
    """Convolve a batch of multi-channel signals, images or volumes with a bank of filters.

    As in every neural-network library this is the cross-correlation: the filters are not flipped.

    Parameters
    ----------
    x : array, shape (n, c_in, *size)
        The input, of any array library and any spatial rank from 1. Integers, real and complex floating-point
        numbers. It is never written to.
    w : array, shape (c_out, c_in / groups, *kernel)
        The filters; `w_layout` says where their channels are.
    b : array, shape (c_out,), optional
        Added to every output of its filter. It counts for the common dtype: one of float64 makes a convolution of
        float32 one of float64, in twice the time and memory.
    stride : int or tuple of int
        Steps between the windows, for all axes or for each.
    padding : int, tuple of int, tuple of (lo, hi) pairs, "valid", "same" or "same_lower"
        Elements added before and behind each axis. Negative numbers crop; with a `pad_mode` that
        reads from `x`, the axis is extended on the other side first, and cropped then. "same" makes the output
        ``ceil(size / stride)`` long, with the odd element at the end, "same_lower" at the beginning; "valid" is 0.
    dilation : int or tuple of int
        Steps between the taps of the kernel.
    groups : int
        Channels are split into this many groups that do not see each other; with ``groups = c_in`` the convolution is
        depthwise.
    pad_mode : {"constant", "edge", "reflect", "symmetric", "wrap"}
        What the padding holds: `pad_value`, or elements of `x` in the sense of :func:`numpy.pad`.
    pad_value : int, float or complex
        What a constant padding holds, a number that the dtype of the result can hold; infinity and NaN among them. It
        is 0 with every other `pad_mode`.
    layout : {"channels_first", "channels_last"}
        With "channels_last", `x` is ``(n, *size, c_in)`` and the result ``(n, *out, c_out)``; `w` stays as it is.
    w_layout : {"oi...", "...io", "o...i", "io...", "...oi", "i...o"}
        The order of the axes of `w`: "o" is that of the filters, "i" that of the input channels of a group, and "..."
        stands for the kernel's. The default is PyTorch's, "...io" that of Keras and JAX, "o...i" that of MLX. The
        filters are read where they lie, with a copy only where the algorithm needs one.
    dtype : dtype, optional
        Wider dtype for the sums and the result, such as int32 for int8 inputs; one of the array's library.
    algorithm : str
        "auto", or the name of the algorithm to use: "gemm" (im2col and a matrix product), "mec" (the same with a
        product per row of outputs, whose columns overlap in memory; on NumPy, two axes or more), "pointwise" (a kernel
        of one tap), "depthwise" (one input channel per group, no columns), "winograd" (up to 16 taps on an
        axis, more than its stride, dilation 1, no integers), "fft" (Fourier transforms of overlapping blocks, for large
        kernels; no integers), "implicit" (on tensor cores without columns, for CuPy arrays of float16, bfloat16 or
        float32) or "cudnn" (NVIDIA's library, for CuPy arrays of real numbers, where there is one).

    Returns
    -------
    array, shape (n, c_out, *out)
        With ``out = floor((size + lo + hi - dilation * (kernel - 1) - 1) / stride) + 1`` on every axis; of the
        library and device of `x`, and of the inputs' common dtype.

    Raises
    ------
    ValueError
        For shapes, sizes and options that do not fit, a kernel larger than the padded input, an algorithm
        that cannot serve the call, or a workspace too small for it.
    TypeError
        For arguments that are no arrays, arrays of two libraries or devices, integers with floats, or booleans.
    MemoryError
        For a result that is larger than any memory.

    See Also
    --------
    conv_input_grad, conv_weight_grad : The two gradients.
    plan : What a call will do, before it is done.

    Notes
    -----
    The cost is ``2 * n * c_out * prod(out) * c_in / groups * prod(kernel)`` operations. float16 and bfloat16 are
    summed in float32. For floating-point numbers the error is at most ``K * eps * conv(|x|, |w|)``, where K is the
    number of products in one sum; that of "winograd" and "fft" in float32 is about 1e-5 of the largest result, a
    NaN may spread to its neighbours, and sums of very large numbers, in float32 from about 1e30 on, may overflow on
    the way to a result that does not (``config(numerics="strict")`` rules all that out). Integers are exact and wrap
    around as the library's own.

    References
    ----------
    .. [1] V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, 2016.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> sobel = np.array([[[[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]]])
    >>> xconv.conv(x, sobel, padding="same", pad_mode="edge")[0, 0]
    array([[4., 8., 8., 4.],
           [4., 8., 8., 4.],
           [4., 8., 8., 4.],
           [4., 8., 8., 4.]])
    """
    given = {"x": x, "w": w} if b is None else {"x": x, "w": w, "b": b}
    backend = backend_of(given)
    options = _options(
        backend, stride, padding, dilation, groups, pad_mode, pad_value, layout, w_layout, dtype, algorithm
    )
    schedule = planned(backend, given, backend.shape("x", x), backend.shape("w", w), options, b=b)
    check_fits(backend, schedule, schedule.y_shape)
    return schedule.run("forward", x, w, b)


def conv_input_grad(
    dy: Array,
    w: Array,
    x_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    pad_mode: PadMode = "constant",
    pad_value: complex = 0,
    layout: Layout = "channels_first",
    w_layout: WLayout = "oi...",
    dtype: DType | None = None,
    algorithm: str = "auto",
) -> Array:
    """Gradient of a convolution with respect to its input: the adjoint of ``conv(x, w)`` in `x`.

    For every `x` and `dy`, ``vdot(dy, conv(x, w)) == vdot(conv_input_grad(dy, w, x.shape), x)`` up to rounding.
    With a `pad_value` that holds for the part of the convolution that is linear in `x`, whatever the value is.

    Parameters
    ----------
    dy : array, shape (n, c_out, *out)
        Gradient with respect to the result.
    w : array, shape (c_out, c_in / groups, *kernel)
        The filters, in the order of `w_layout`. Complex ones are conjugated.
    x_shape : sequence of int
        Shape of the input, in the given layout; more than one size can lead to the same output.
    stride, padding, dilation, groups, pad_mode, pad_value, layout, w_layout, dtype, algorithm
        As given to :func:`conv`.

    Returns
    -------
    array, shape `x_shape`
        Of the library and device of `dy`, and of the common dtype of `dy` and `w`.

    Raises
    ------
    ValueError
        Where :func:`conv` raises it, and where `dy` has not the shape of that convolution's result.
    TypeError, MemoryError
        Where :func:`conv` raises it.

    Notes
    -----
    As many operations as the convolution, and the same bound on the error. No atomic operations: the
    result is the same in every bit on every run.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> dy, w = np.ones((1, 1, 2, 2)), np.ones((1, 1, 3, 3))
    >>> xconv.conv_input_grad(dy, w, (1, 1, 4, 4))[0, 0]
    array([[1., 2., 2., 1.],
           [2., 4., 4., 2.],
           [2., 4., 4., 2.],
           [1., 2., 2., 1.]])
    """
    given = {"dy": dy, "w": w}
    backend = backend_of(given)
    x_shape = shape("x_shape", x_shape)
    options = _options(
        backend, stride, padding, dilation, groups, pad_mode, pad_value, layout, w_layout, dtype, algorithm
    )
    schedule = planned(backend, given, x_shape, backend.shape("w", w), options, dy=dy)
    check_fits(backend, schedule, x_shape)
    return schedule.run("input_grad", dy, w)


def conv_weight_grad(
    dy: Array,
    x: Array,
    w_shape: Sequence[int],
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    pad_mode: PadMode = "constant",
    pad_value: complex = 0,
    layout: Layout = "channels_first",
    w_layout: WLayout = "oi...",
    dtype: DType | None = None,
    algorithm: str = "auto",
) -> Array:
    """Gradient of a convolution with respect to its filters: the adjoint of ``conv(x, w)`` in `w`.

    For every `w` and `dy`, ``vdot(dy, conv(x, w)) == vdot(conv_weight_grad(dy, x, w.shape), w)`` up to rounding.
    The gradient of a bias is the sum of `dy` over images and pixels.

    Parameters
    ----------
    dy : array, shape (n, c_out, *out)
        Gradient with respect to the result.
    x : array, shape (n, c_in, *size)
        The input. Complex ones are conjugated.
    w_shape : sequence of int
        Shape of the filters, ``(c_out, c_in / groups, *kernel)`` or as `w_layout` says.
    stride, padding, dilation, groups, pad_mode, pad_value, layout, w_layout, dtype, algorithm
        As given to :func:`conv`.

    Returns
    -------
    array, shape `w_shape`
        Of the library and device of `dy`, and of the common dtype of `dy` and `x`. With a `w_layout` other than the
        default, its axes are permuted without a copy, so that it need not be contiguous.

    Raises
    ------
    ValueError
        Where :func:`conv` raises it, and where `dy` has not the shape of that convolution's result.
    TypeError, MemoryError
        Where :func:`conv` raises it.

    Notes
    -----
    As many operations as the convolution. The sum over images and pixels is taken in an order that depends on the
    shapes, the dtype and the workspace, and not on the number of threads.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> x, dy = np.arange(5.0).reshape(1, 1, 5), np.ones((1, 1, 3))
    >>> xconv.conv_weight_grad(dy, x, (1, 1, 3))
    array([[[3., 6., 9.]]])
    """
    given = {"dy": dy, "x": x}
    backend = backend_of(given)
    w_shape = shape("w_shape", w_shape)
    options = _options(
        backend, stride, padding, dilation, groups, pad_mode, pad_value, layout, w_layout, dtype, algorithm
    )
    schedule = planned(backend, given, backend.shape("x", x), w_shape, options, dy=dy)
    check_fits(backend, schedule, w_shape)
    return schedule.run("weight_grad", dy, x)


def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    output_padding: Ints = 0,
    output_size: Ints | None = None,
    dilation: Ints = 1,
    groups: int = 1,
    layout: Layout = "channels_first",
    w_layout: WLayout = "io...",
    dtype: DType | None = None,
    algorithm: str = "auto",
) -> Array:
    """Transposed convolution: the input gradient of :func:`conv`, used as a layer that enlarges its input.

    Parameters
    ----------
    x : array, shape (n, c_in, *size)
        The input.
    w : array, shape (c_in, c_out / groups, *kernel)
        The filters, input channels first or as `w_layout` says. Complex ones are not conjugated.
    b : array, shape (c_out,), optional
        Added to every output of its channel, and of a dtype that counts as in :func:`conv`.
    stride, padding, dilation, groups, layout, dtype, algorithm
        Those of the convolution whose transpose this is, as in :func:`conv`. With "same" the result is
        ``size * stride`` long, unless `output_size` is another that leads to `x`.
    w_layout : {"io...", "...io", "o...i", "oi...", "...oi", "i...o"}
        The order of the axes of `w`: here "i" is the axis of the channels of `x`, and "o" that of the output channels
        of a group. The default is PyTorch's, "...oi" that of Keras, "o...i" that of MLX.
    output_padding : int or tuple of int
        Elements that the result is longer at the end, since a strided convolution takes several sizes to one; less
        than the stride or the dilation. Not with "same", which has a size of its own.
    output_size : int or tuple of int, optional
        The size of the result, instead of `output_padding`: one that the convolution takes to the size of `x`.

    Returns
    -------
    array, shape (n, c_out, *out)
        With ``out = (size - 1) * stride - lo - hi + dilation * (kernel - 1) + 1 + output_padding`` on every axis;
        of the library and device of `x`, and of the inputs' common dtype.

    Raises
    ------
    ValueError
        Where :func:`conv` raises it, for an `output_padding` or `output_size` out of its range, and where padding
        leaves no output.
    TypeError, MemoryError
        Where :func:`conv` raises it.

    Notes
    -----
    ``2 * n * c_in * prod(size) * c_out / groups * prod(kernel)`` operations.

    Its gradients are ``conv(dy, w, **options)`` in `x`, ``conv_weight_grad(x, dy, w.shape, **options)`` in `w`, and the
    sum of `dy` over images and pixels in `b`. The options are its own, but for ``(lo, hi - output_padding)`` as the
    padding of each axis: without that, an `output_padding` that is not less than the stride would lead to more than
    `x`. Of complex numbers, they are ``conv(dy, conj(w), ...)`` and ``conj(conv_weight_grad(x, dy, ...))``. The bridges
    to PyTorch, JAX and autograd have them.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> x, w = np.array([[[1.0, 2, 3]]]), np.array([[[1.0, 10]]])
    >>> xconv.conv_transpose(x, w, stride=2)
    array([[[ 1., 10.,  2., 20.,  3., 30.]]])
    >>> xconv.conv_transpose(x, w, stride=2, output_size=7)
    array([[[ 1., 10.,  2., 20.,  3., 30.,  0.]]])

    The gradients of the latter:

    >>> dy = np.ones((1, 1, 7))
    >>> xconv.conv(dy, w, stride=2, padding=((0, -1),))
    array([[[11., 11., 11.]]])
    >>> xconv.conv_weight_grad(x, dy, w.shape, stride=2, padding=((0, -1),))
    array([[[6., 6.]]])
    """
    given = {"x": x, "w": w} if b is None else {"x": x, "w": w, "b": b}
    backend = backend_of(given)
    options = _options(backend, stride, padding, dilation, groups, "constant", 0, layout, w_layout, dtype, algorithm)
    size = None if output_size is None else frozen("output_size", output_size)
    options = options._replace(output_padding=frozen("output_padding", output_padding), output_size=size)
    schedule = planned(backend, given, backend.shape("x", x), backend.shape("w", w), options, b=b)
    check_fits(backend, schedule, schedule.x_shape)
    return schedule.run("input_grad", x, w, b, conjugate=False)


def im2col(
    x: Array,
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    pad_mode: PadMode = "constant",
    pad_value: complex = 0,
    axes: Sequence[int] | None = None,
) -> Array:
    """Unfold an array into its windows: every patch that a kernel would see, as a new array.

    Parameters
    ----------
    x : array, shape (n, c, *size)
        The input. A single image needs a batch axis, ``x[None]``: without it, its channels are taken for the batch.
    kernel_size : int or tuple of int
        Taps of the window, for all axes or for each. A tuple of another length than there are spatial axes is an error.
    stride, padding, dilation, pad_mode, pad_value
        As in :func:`conv`.
    axes : tuple of int, optional
        The order of the result's axes, a permutation of those of ``(n, c, *kernel, *out)`` as ``permute_dims`` takes
        it. The result is written in this order, so that to join neighbouring axes of it is a view.

    Returns
    -------
    array, shape (n, c, *kernel, *out), or that in the order of `axes`
        Of the library, device and dtype of `x`; ``prod(kernel)`` times as large where the stride is 1.

    Raises
    ------
    ValueError, TypeError, MemoryError
        Where :func:`conv` raises them, and for `axes` that are no permutation.

    See Also
    --------
    col2im : The adjoint.

    Notes
    -----
    One element is read and one written per element of the result; no arithmetic. NumPy's and CuPy's arrays lie in
    memory in the order of `axes`, without another copy, and so do others where their library lets us choose.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> cols = xconv.im2col(np.arange(5).reshape(1, 1, 5), 3)
    >>> cols[0, 0]
    array([[0, 1, 2],
           [1, 2, 3],
           [2, 3, 4]])

    A row for every window of every image, and a column for every tap of every channel:

    >>> x = np.ones((5, 3, 8, 8))
    >>> windows = xconv.im2col(x, 3, axes=(0, 4, 5, 1, 2, 3))
    >>> windows.reshape(5 * 6 * 6, 3 * 3 * 3, copy=False).shape
    (180, 27)
    """
    given = {"x": x}
    backend = backend_of(given)
    x_shape = backend.shape("x", x)
    if len(x_shape) < 3:
        check_ranks(x_shape, x_shape, ("x", "x"), channels_last=False)
    kernel = per_axis("kernel_size", frozen("kernel_size", kernel_size), len(x_shape) - 2, least=1)
    options = _options(
        backend, stride, padding, dilation, 1, pad_mode, pad_value, "channels_first", "oi...", None, "gemm"
    )
    order = permutation("axes", axes, 2 * len(x_shape) - 2)
    options = options._replace(order=order) if order else options
    schedule = planned(backend, given, x_shape, (1, x_shape[1], *kernel), options)
    check_fits(backend, schedule, schedule.geometry.columns_shape)
    cols = schedule.run("im2col", x)
    return backend.xp.permute_dims(cols, order) if order else cols


def col2im(
    cols: Array,
    size: Ints,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    axes: Sequence[int] | None = None,
) -> Array:
    """Fold windows back by summation: the exact adjoint of :func:`im2col`.

    Every element of the columns is added to the input element that `im2col` reads it from. It is not the
    inverse of `im2col`: an element that k windows see comes back k times as large.

    Parameters
    ----------
    cols : array, shape (n, c, *kernel, *out), or that in the order of `axes`
        Windows, as from :func:`im2col`.
    size : int or tuple of int
        Spatial size of the result, for all axes or for each.
    stride, padding, dilation, axes
        As given to `im2col`.

    Returns
    -------
    array, shape (n, c, *size)
        Of the library, device and dtype of `cols`. The order of summation is fixed.

    Raises
    ------
    ValueError
        Where :func:`conv` raises it, and where `cols` has not the shape that `im2col` makes from `size`.
    TypeError, MemoryError
        Where :func:`conv` raises it.

    Notes
    -----
    One addition per element of `cols`. float16 and bfloat16 are summed in float32.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> xconv.col2im(np.ones((1, 1, 3, 3)), 5)
    array([[[1., 2., 3., 2., 1.]]])
    """
    given = {"cols": cols}
    backend = backend_of(given)
    cols_shape = backend.shape("cols", cols)
    if len(cols_shape) < 4 or len(cols_shape) % 2:
        msg = f"`cols` must have the axes (n, c, *kernel, *out), got shape {cols_shape}"
        raise ValueError(msg)
    order = permutation("axes", axes, len(cols_shape))
    n, c, *windows = (cols_shape[i] for i in inverse(order)) if order else cols_shape
    rank = len(windows) // 2
    sizes = per_axis("size", frozen("size", size), rank, least=0)
    options = _options(backend, stride, padding, dilation, 1, "constant", 0, "channels_first", "oi...", None, "gemm")
    options = options._replace(order=order) if order else options
    schedule = planned(backend, given, (n, c, *sizes), (1, c, *windows[:rank]), options)
    out = schedule.geometry.out
    if out != tuple(windows[rank:]):
        msg = f"`cols` must have the output size {out} that size {sizes} leads to, got shape {cols_shape}"
        raise ValueError(msg)
    check_fits(backend, schedule, schedule.x_shape)
    return schedule.run("col2im", backend.xp.permute_dims(cols, inverse(order)) if order else cols)


def plan(
    x: Array,
    w: Array,
    *,
    stride: Ints = 1,
    padding: Padding = 0,
    dilation: Ints = 1,
    groups: int = 1,
    pad_mode: PadMode = "constant",
    pad_value: complex = 0,
    layout: Layout = "channels_first",
    w_layout: WLayout = "oi...",
    dtype: DType | None = None,
    algorithm: str = "auto",
) -> Plan:
    """Say how a convolution will be run, and hand out the means to run it with no further planning.

    Nothing is computed: `x` and `w` give their library, shapes and dtypes. The settings of :class:`config` that
    surround this call become part of the plan.

    Parameters
    ----------
    x, w : array
        The operands of the convolution, or what has their shapes and dtypes: arrays like them, PyTorch's on the device
        "meta", or a ``jax.ShapeDtypeStruct`` each.
    stride, padding, dilation, groups, pad_mode, pad_value, layout, w_layout, dtype, algorithm
        As in :func:`conv`.

    Returns
    -------
    Plan
        Its text says what was chosen and why; its ``forward``, ``input_grad`` and ``weight_grad`` run it.

    Raises
    ------
    ValueError, TypeError
        Where :func:`conv` raises them.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> p = xconv.plan(np.ones((1, 3, 32, 32)), np.ones((8, 3, 1, 1)))
    >>> p.algorithm
    'pointwise'
    """
    given = {"x": x, "w": w}
    backend = backend_of({name: model(array) for name, array in given.items()})
    options = _options(
        backend, stride, padding, dilation, groups, pad_mode, pad_value, layout, w_layout, dtype, algorithm
    )
    schedule = planned(backend, given, backend.shape("x", x), backend.shape("w", w), options)
    if not isinstance(schedule, Planned):
        msg = "`x` and `w` must lie in one piece: what is done with an array in chunks is planned chunk by chunk"
        raise TypeError(msg)
    settings = _config.current()
    place = "" if settings.tuning is None else backend.place(x)
    return Plan(schedule, place, (x.dtype, w.dtype), settings)


def _options(
    backend: Backend,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    pad_mode: Any,
    pad_value: object,
    layout: Any,
    w_layout: Any,
    dtype: DType | None,
    algorithm: Any,
) -> Options:
    """The arguments as they were given, checked only so far that they can be compared with earlier ones."""
    words = (("pad_mode", pad_mode), ("layout", layout), ("w_layout", w_layout), ("algorithm", algorithm))
    for name, word in words:
        if not isinstance(word, str):
            msg = f"`{name}` must be a string, got {word!r}"
            raise TypeError(msg)
    return Options(
        frozen("stride", stride),
        frozen("padding", padding),
        frozen("dilation", dilation),
        integer("groups", groups),
        pad_mode,
        number("pad_value", pad_value),
        layout,
        dtype if dtype is None else backend.to_dtype(dtype),
        algorithm,
        w_layout,
    )
