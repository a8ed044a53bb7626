"""The few types that every module shares."""

from typing import Any, Literal, TypeAlias

#: An array of any library that follows the array-API standard.
Array: TypeAlias = Any
#: That library's namespace, dtype and device objects.
Namespace: TypeAlias = Any
DType: TypeAlias = Any
Device: TypeAlias = Any

Shape: TypeAlias = tuple[int, ...]
#: A basic index, one slice per array axis.
Index: TypeAlias = tuple[slice, ...]

#: What callers may write for ``stride`` and ``dilation``, and for ``padding``.
Ints: TypeAlias = int | tuple[int, ...] | list[int]
Padding: TypeAlias = int | str | tuple[int | tuple[int, int], ...] | list[int | tuple[int, int]]

#: What is computed; windows alone from the fourth on, and what becomes of them where they are pooled.
Function: TypeAlias = Literal[
    "forward",
    "input_grad",
    "weight_grad",
    "im2col",
    "col2im",
    "max_pool",
    "max_pool_grad",
    "avg_pool",
    "avg_pool_grad",
]

#: What is made of a window: its largest element, the mean of all, or of those that are no padding.
Pooled: TypeAlias = Literal["max", "mean", "mean_seen"]

PadMode: TypeAlias = Literal["constant", "edge", "reflect", "symmetric", "wrap"]
Layout: TypeAlias = Literal["channels_first", "channels_last"]
WLayout: TypeAlias = Literal["oi...", "io...", "o...i", "i...o", "...oi", "...io"]

#: What a number is: "integer", "real", "complex", or None for what has no sums of products.
Kind: TypeAlias = Literal["integer", "real", "complex"] | None
