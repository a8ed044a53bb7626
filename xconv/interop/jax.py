"""JAX: convolutions whose derivatives are xconv's own gradients, of every order.

They work under ``jit``, ``grad``, ``vjp``, ``jacrev`` and ``vmap``, on one device or with the batch sharded over
several. Forward-mode derivatives (``jvp``, ``jacfwd``, ``hessian``) are had from :func:`xconv.conv` itself, which JAX
differentiates operation by operation.
"""

from functools import partial
from typing import Any, Unpack

import jax

from .._typing import Array
from ._product import ConvOptions, Product, TransposeOptions, cast

__all__ = ["conv", "conv_transpose"]


def conv(x: Array, w: Array, b: Array | None = None, **options: Unpack[ConvOptions]) -> Array:
    """Convolve JAX arrays as :func:`xconv.conv` does, with explicit gradients.

    Parameters
    ----------
    x : Array, shape (n, c_in, *size)
        The input.
    w : Array, shape (c_out, c_in / groups, *kernel)
        The filters.
    b : Array, shape (c_out,), optional
        Added to every output of its filter.
    **options
        ``stride``, ``padding``, ``dilation``, ``groups``, ``pad_mode``, ``pad_value``, ``layout``, ``w_layout``,
        ``dtype`` and ``algorithm``, as in :func:`xconv.conv`. Under ``jit`` they are static.

    Returns
    -------
    Array, shape (n, c_out, *out)
        What :func:`xconv.conv` returns. The gradients of `x`, `w` and `b` have the shapes and dtypes of these, and may
        be differentiated again.

    Raises
    ------
    ValueError, TypeError
        Where :func:`xconv.conv` raises them.

    Notes
    -----
    Either gradient costs as much as the convolution; compiled, one that nothing uses is left out. Kept for the
    backward pass are `x`, `w` and `b`, and nothing else. The settings of :class:`xconv.config` that surround the
    call hold for its gradients.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from xconv.interop.jax import conv
    >>> x, w = jnp.arange(5.0).reshape(1, 1, 5), jnp.ones((1, 1, 3))
    >>> jax.jit(jax.grad(lambda w: conv(x, w).sum()))(w)
    Array([[[3., 6., 9.]]], dtype=float32)
    """
    return _bilinear(Product("y", options), *_together(x, w, b))


def conv_transpose(x: Array, w: Array, b: Array | None = None, **options: Unpack[TransposeOptions]) -> Array:
    """Convolve JAX arrays, transposed, as :func:`xconv.conv_transpose` does, with explicit gradients.

    Parameters
    ----------
    x : Array, shape (n, c_in, *size)
        The input.
    w : Array, shape (c_in, c_out / groups, *kernel)
        The filters, input channels first.
    b : Array, shape (c_out,), optional
        Added to every output of its channel.
    **options
        ``stride``, ``padding``, ``output_padding``, ``output_size``, ``dilation``, ``groups``, ``layout``,
        ``w_layout``, ``dtype`` and ``algorithm``, as in :func:`xconv.conv_transpose`.

    Returns
    -------
    Array, shape (n, c_out, *out)
        What :func:`xconv.conv_transpose` returns, with gradients as in :func:`conv`.

    Raises
    ------
    ValueError, TypeError
        Where :func:`xconv.conv_transpose` raises them.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from xconv.interop.jax import conv_transpose
    >>> x, w = jnp.ones((1, 1, 3)), jnp.asarray([[[1.0, 10]]])
    >>> conv_transpose(x, w, stride=2)
    Array([[[ 1., 10.,  1., 10.,  1., 10.]]], dtype=float32)
    >>> jax.grad(lambda w: conv_transpose(x, w, stride=2).sum())(w)
    Array([[[3., 3.]]], dtype=float32)
    """
    return _bilinear(Product("x", options), *_together(x, w, b))


def _together(*operands: Any) -> list[Array | None]:
    """The operands as arrays of JAX that vary over the same axes of a mesh.

    JAX sees to both for its own functions, but not for those with derivatives of their own; under ``shard_map`` it then
    would not sum the gradient of what is the same on all devices.
    """
    arrays = [None if a is None else jax.numpy.asarray(a) for a in operands]
    axes = frozenset[str]().union(*(_varying(a) for a in arrays if a is not None))
    for i, a in enumerate(arrays):
        if a is not None and (missing := axes - _varying(a)):
            arrays[i] = jax.lax.pcast(a, tuple(sorted(missing)), to="varying")
    return arrays


def _varying(a: Array) -> frozenset[str]:
    """The axes of a mesh over which `a` may differ from device to device."""
    manual = getattr(jax.typeof(a), "mat", None)
    return getattr(manual, "varying", frozenset())


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bilinear(product: Product, a: Array, b: Array, bias: Array | None) -> Array:
    """A product, and a bias. Its gradients are products again, and so have gradients themselves."""
    return product(a, b, bias)


def _forward(product: Product, *operands: Any) -> tuple[Array, tuple[Any, ...]]:
    return _bilinear(product, *operands), operands


def _backward(product: Product, operands: tuple[Any, ...], g: Array) -> tuple[Array | None, ...]:
    a, b, bias = _together(*operands)
    da = _bilinear(*product.gradient(0, a, g, b), None)
    db = _bilinear(*product.gradient(1, b, g, a), None)
    dbias = None if bias is None else cast(g.sum(product.all_but_channels(g.ndim)), bias.dtype)
    return da, db, dbias


_bilinear.defvjp(_forward, _backward)
