"""HIPS autograd: convolutions of NumPy arrays with reverse-mode derivatives of every order."""

from collections.abc import Callable
from typing import Any, Unpack

import autograd.numpy as anp
from autograd.extend import defvjp, primitive

from .._typing import Array
from ._product import ConvOptions, Product, TransposeOptions

__all__ = ["conv", "conv_transpose"]


def conv(x: Array, w: Array, b: Array | None = None, **options: Unpack[ConvOptions]) -> Array:
    """Convolve NumPy arrays as :func:`xconv.conv` does, and be differentiable by autograd.

    Parameters
    ----------
    x : array, shape (n, c_in, *size)
        The input, a NumPy array or what autograd makes of one.
    w : array, shape (c_out, c_in / groups, *kernel)
        The filters.
    b : array, shape (c_out,), optional
        Added to every output of its filter.
    **options
        ``stride``, ``padding``, ``dilation``, ``groups``, ``pad_mode``, ``pad_value``, ``layout``, ``w_layout``,
        ``dtype`` and ``algorithm``, as in :func:`xconv.conv`.

    Returns
    -------
    array, shape (n, c_out, *out)
        What :func:`xconv.conv` returns. The gradients of `x`, `w` and `b` have the shapes and dtypes of these, and may
        be differentiated again.

    Raises
    ------
    ValueError, TypeError
        Where :func:`xconv.conv` raises them.

    Notes
    -----
    Either gradient costs as much as the convolution, and is not computed where nothing asks for it. The settings
    of :class:`xconv.config` that surround the call hold for its gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from autograd import grad
    >>> from xconv.interop.autograd import conv
    >>> x, w = np.arange(5.0).reshape(1, 1, 5), np.ones((1, 1, 3))
    >>> grad(lambda w: conv(x, w).sum())(w)
    array([[[3., 6., 9.]]])
    """
    return _bilinear(Product("y", options), x, w, b)


def conv_transpose(x: Array, w: Array, b: Array | None = None, **options: Unpack[TransposeOptions]) -> Array:
    """Convolve NumPy arrays, transposed, as :func:`xconv.conv_transpose` does, and be differentiable by autograd.

    Parameters
    ----------
    x : array, shape (n, c_in, *size)
        The input, a NumPy array or what autograd makes of one.
    w : array, shape (c_in, c_out / groups, *kernel)
        The filters, input channels first.
    b : array, shape (c_out,), optional
        Added to every output of its channel.
    **options
        ``stride``, ``padding``, ``output_padding``, ``output_size``, ``dilation``, ``groups``, ``layout``,
        ``w_layout``, ``dtype`` and ``algorithm``, as in :func:`xconv.conv_transpose`.

    Returns
    -------
    array, shape (n, c_out, *out)
        What :func:`xconv.conv_transpose` returns, with gradients as in :func:`conv`.

    Raises
    ------
    ValueError, TypeError
        Where :func:`xconv.conv_transpose` raises them.

    Examples
    --------
    >>> import numpy as np
    >>> from autograd import grad
    >>> from xconv.interop.autograd import conv_transpose
    >>> x, w = np.ones((1, 1, 3)), np.array([[[1.0, 10]]])
    >>> conv_transpose(x, w, stride=2)
    array([[[ 1., 10.,  1., 10.,  1., 10.]]])
    >>> grad(lambda w: conv_transpose(x, w, stride=2).sum())(w)
    array([[[3., 3.]]])
    """
    return _bilinear(Product("x", options), x, w, b)


@primitive
def _bilinear(product: Product, a: Array, b: Array, bias: Array | None) -> Array:
    """A product, and a bias. Its gradients are products again, and so have gradients themselves."""
    return product(a, b, bias)


Gradient = Callable[[Array], Array]


def _gradient_of_a(_y: Array, product: Product, a: Array, b: Array, _bias: Array | None) -> Gradient:
    return lambda g: _bilinear(*product.gradient(0, a, g, b), None)


def _gradient_of_b(_y: Array, product: Product, a: Array, b: Array, _bias: Array | None) -> Gradient:
    return lambda g: _bilinear(*product.gradient(1, b, g, a), None)


def _gradient_of_bias(y: Array, product: Product, _a: Array, _b: Array, bias: Array) -> Gradient:
    axes = product.all_but_channels(y.ndim)

    def gradient(g: Array) -> Any:
        summed = anp.sum(g, axis=axes)
        return (summed if anp.iscomplexobj(bias) else anp.real(summed)).astype(bias.dtype)

    return gradient


defvjp(_bilinear, _gradient_of_a, _gradient_of_b, _gradient_of_bias, argnums=(1, 2, 3))
