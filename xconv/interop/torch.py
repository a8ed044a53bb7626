"""PyTorch: convolutions whose backward pass is xconv's own gradients, of every order.

They work under ``backward``, and under ``grad``, ``vjp``, ``jacrev`` and ``vmap`` of :mod:`torch.func`. Forward-mode
derivatives (``jvp``, ``jacfwd``, ``hessian``) are had from :func:`xconv.conv` itself, which PyTorch differentiates
operation by operation, and so are batches of gradients by ``torch.autograd.grad(..., is_grads_batched=True)``.
"""

from typing import Any, Unpack

import torch

from .._typing import Array
from ._product import ConvOptions, Product, TransposeOptions, cast

__all__ = ["conv", "conv_transpose"]


def conv(x: Array, w: Array, b: Array | None = None, **options: Unpack[ConvOptions]) -> Array:
    """Convolve tensors as :func:`xconv.conv` does, with explicit gradients.

    Parameters
    ----------
    x : Tensor, shape (n, c_in, *size)
        The input.
    w : Tensor, shape (c_out, c_in / groups, *kernel)
        The filters.
    b : Tensor, shape (c_out,), optional
        Added to every output of its filter.
    **options
        ``stride``, ``padding``, ``dilation``, ``groups``, ``pad_mode``, ``pad_value``, ``layout``, ``w_layout``,
        ``dtype`` and ``algorithm``, as in :func:`xconv.conv`.

    Returns
    -------
    Tensor, shape (n, c_out, *out)
        What :func:`xconv.conv` returns. The gradients of `x`, `w` and `b` have the shapes and dtypes of these, and may
        be differentiated again.

    Raises
    ------
    ValueError, TypeError
        Where :func:`xconv.conv` raises them.

    Notes
    -----
    Either gradient costs as much as the convolution, and is not computed where nothing asks for it. Kept for the
    backward pass are `x` and `w`, and nothing else. The settings of :class:`xconv.config` that surround the call
    hold for its gradients.

    Examples
    --------
    >>> import torch
    >>> from xconv.interop.torch import conv
    >>> x, w = torch.arange(5.0).reshape(1, 1, 5), torch.ones(1, 1, 3, requires_grad=True)
    >>> conv(x, w).sum().backward()
    >>> w.grad
    tensor([[[3., 6., 9.]]])
    """
    return _bilinear(Product("y", options), x, w, b)


def conv_transpose(x: Array, w: Array, b: Array | None = None, **options: Unpack[TransposeOptions]) -> Array:
    """Convolve tensors, transposed, as :func:`xconv.conv_transpose` does, with explicit gradients.

    Parameters
    ----------
    x : Tensor, shape (n, c_in, *size)
        The input.
    w : Tensor, shape (c_in, c_out / groups, *kernel)
        The filters, input channels first.
    b : Tensor, shape (c_out,), optional
        Added to every output of its channel.
    **options
        ``stride``, ``padding``, ``output_padding``, ``output_size``, ``dilation``, ``groups``, ``layout``,
        ``w_layout``, ``dtype`` and ``algorithm``, as in :func:`xconv.conv_transpose`.

    Returns
    -------
    Tensor, shape (n, c_out, *out)
        What :func:`xconv.conv_transpose` returns, with gradients as in :func:`conv`.

    Raises
    ------
    ValueError, TypeError
        Where :func:`xconv.conv_transpose` raises them.

    Examples
    --------
    >>> import torch
    >>> from xconv.interop.torch import conv_transpose
    >>> x, w = torch.ones(1, 1, 3), torch.tensor([[[1.0, 10]]], requires_grad=True)
    >>> y = conv_transpose(x, w, stride=2)
    >>> y.detach()
    tensor([[[ 1., 10.,  1., 10.,  1., 10.]]])
    >>> y.sum().backward()
    >>> w.grad
    tensor([[[3., 3.]]])
    """
    return _bilinear(Product("x", options), x, w, b)


def _bilinear(product: Product, *operands: Array | None) -> Array:
    """A product, operation by operation where it is only traced: that knows no function with its own gradients."""
    return product(*operands) if torch.jit.is_tracing() else _Bilinear.apply(product, *operands)


class _Bilinear(torch.autograd.Function):
    """A product, and a bias. Its gradients are products again, and so have gradients themselves."""

    generate_vmap_rule = True

    @staticmethod
    def forward(product: Product, a: Array, b: Array, bias: Array | None) -> Array:
        y = product(a, b, bias)
        return y.detach() if y._is_view() else y  # noqa: SLF001 - a view made in here could not be changed in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Array) -> None:
        del output
        ctx.product, a, b, bias = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx: Any, g: Array) -> tuple[Array | None, ...]:
        """PyTorch's gradients are conjugate ones: those of a product are taken with the conjugate operand."""
        product, (a, b) = ctx.product, ctx.saved_tensors
        _, for_a, for_b, for_bias = ctx.needs_input_grad
        da = _Bilinear.apply(*product.gradient(0, a, g, b.conj()), None) if for_a else None
        db = _Bilinear.apply(*product.gradient(1, b, g, a.conj()), None) if for_b else None
        dbias = cast(g.sum(product.all_but_channels(g.ndim)), ctx.bias_dtype) if for_bias else None
        return None, da, db, dbias
