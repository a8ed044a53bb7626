"""From what callers write to a Geometry: defaults, strings and broadcasting end here, and shape errors start here."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from ._axis import Axis
from ._geometry import Geometry
from ._typing import DType, Kind, Shape
from ._values import ONLY_INTEGERS, integer, per_axis

#: More than any memory holds, and still countable by `len`.
MOST_ELEMENTS = 2**62
#: Bytes that a process can address. The widest elements have so many.
MOST_BYTES, WIDEST = 2**47, 16

PADDINGS = ("valid", "same", "same_lower")
PAD_MODES = ("constant", "edge", "reflect", "symmetric", "wrap")
#: What other libraries call them.
ELSEWHERE = {"zeros": "constant", "replicate": "edge", "nearest": "edge", "mirror": "reflect", "circular": "wrap"}

LAYOUTS = ("channels_first", "channels_last")
#: The orders of the filters' axes: "o" and "i" are the channels, and "..." the kernel's. The usual ones come first.
W_LAYOUTS = ("oi...", "...io", "o...i", "io...", "...oi", "i...o")
#: What is an output channel of a transposed convolution is an input channel of the convolution.
TRANSPOSED = str.maketrans("oi", "io")


def geometry(
    x_shape: Shape,
    w_shape: Shape,
    *,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int = 1,
    pad_mode: str = "constant",
    pad_value: complex = 0,
    names: tuple[str, str] = ("x", "w"),
    w_layout: str = "oi...",
) -> Geometry:
    """Check shapes (`x` channels first) and options, and resolve the padding. Raises ValueError, naming the argument.

    The `names` are those of the arguments that the shapes of `x` and `w` came from.
    """
    x, w = names
    batch, c_in, *size = x_shape
    c_out, c_group, *kernel = (w_shape[at] for at in filter_axes(w_layout, len(size)))
    _check_groups(groups, c_in, c_out)
    if c_group * groups != c_in:
        channels = f"the {c_in} channels of `{x}`" + (f", {c_in // groups} for each of {groups} groups," * (groups > 1))
        msg = f"`{w}` must have {channels} on its {_place('i', w_layout, w_layout)}, got shape {w_shape}"
        raise ValueError(msg)
    if pad_mode not in PAD_MODES:
        msg = f"`pad_mode` must be one of {PAD_MODES}, got {pad_mode!r}"
        raise ValueError(msg + (f': write "{ELSEWHERE[pad_mode]}"' if pad_mode in ELSEWHERE else ""))
    if pad_value and pad_mode != "constant":
        msg = f"`pad_value` must be 0 with `pad_mode` {pad_mode!r}, which reads from `{x}`, got {pad_value!r}"
        raise ValueError(msg)
    bare = _axes(size, kernel, stride, dilation)
    axes = tuple(replace(a, lo=lo, hi=hi) for a, (lo, hi) in zip(bare, _paddings(padding, bare), strict=True))
    if any(a.padded < a.extent for a in axes):
        msg = (
            f"the dilated kernel must fit into the padded input, got an input of size {tuple(size)}, `padding` "
            f"{tuple((a.lo, a.hi) for a in axes)} and dilated kernels of size {tuple(a.extent for a in axes)}"
        )
        raise ValueError(msg)
    if pad_mode != "constant" and any(a.size == 0 and a.is_padded for a in axes):
        msg = f"`pad_mode` {pad_mode!r} needs an element to pad from, got `{x}` of size {tuple(size)}"
        raise ValueError(msg)
    g = Geometry(batch, c_in, c_out, groups, axes, pad_mode if any(a.is_padded for a in axes) else "constant")
    return _settled(replace(g, pad_value=pad_value) if any(a.lo > 0 or a.hi > 0 for a in axes) else g)


def transposed_geometry(
    x_shape: Shape,
    w_shape: Shape,
    *,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int = 1,
    output_padding: object = 0,
    output_size: object = None,
    w_layout: str = "oi...",
) -> Geometry:
    """The convolution whose input gradient is this transposed convolution: its output is `x`, its input the result.

    The `w_layout` is that of its filters.
    """
    batch, c_in, *size = x_shape
    filters, c_group, *kernel = (w_shape[at] for at in filter_axes(w_layout, len(size)))
    _check_groups(groups, c_in, c_group * groups)
    if filters != c_in:
        place = _place("o", w_layout, w_layout.translate(TRANSPOSED))
        msg = f"`w` must have the {c_in} channels of `x` on its {place}, got shape {w_shape}"
        raise ValueError(msg)
    if min(size) < 1:
        msg = f"`x` must have an element on every spatial axis, got size {tuple(size)}"
        raise ValueError(msg)
    bare = _axes(size, kernel, stride, dilation)
    results = _results(bare, padding, output_padding, output_size)
    pairs = _paddings(padding, [replace(a, size=result) for a, result in zip(bare, results, strict=True)])
    axes = [
        replace(a, size=result, lo=lo, hi=_full(a) - lo - result)
        for a, result, (lo, _) in zip(bare, results, pairs, strict=True)
    ]
    return _settled(Geometry(batch, c_group * groups, c_in, groups, tuple(axes)))


def _results(axes: list[Axis], padding: object, output_padding: object, output_size: object) -> Shape:
    """The size of a transposed convolution's result, of the axes of its input."""
    same = padding in ("same", "same_lower")
    if same:  # of those that such a convolution takes to the input, the largest is what nobody need ask for
        least, rooms = [(a.size - 1) * a.stride + 1 for a in axes], [a.stride for a in axes]
        usual = tuple(a.size * a.stride for a in axes)
    else:
        least = [_full(a) - lo - hi for a, (lo, hi) in zip(axes, _paddings(padding, axes), strict=True)]
        rooms, usual = [max(a.stride, a.dilation) for a in axes], tuple(least)
    extras = per_axis("output_padding", output_padding, len(axes), least=0)
    if any(extra >= (1 if same else room) for extra, room in zip(extras, rooms, strict=True)):
        rule = f'0 for `padding` "{padding}"' if same else "less than the stride or the dilation"
        msg = f"`output_padding` must be {rule}, got {output_padding!r}"
        raise ValueError(msg)
    results = tuple(n + extra for n, extra in zip(usual, extras, strict=True))
    if min(results) < 1 and output_size is None:
        msg = f"`padding` must leave some output, got {padding!r} for outputs of size {results}"
        raise ValueError(msg)
    if output_size is None:
        return results
    if any(extras):
        msg = f"`output_size` must be given without `output_padding`, got {output_size!r} and {output_padding!r}"
        raise ValueError(msg)
    results = per_axis("output_size", output_size, len(axes), least=1)
    if not all(n <= result < n + room for n, result, room in zip(least, results, rooms, strict=True)):
        ranges = " by ".join(f"{max(1, n)} to {n + room - 1}" for n, room in zip(least, rooms, strict=True))
        msg = (
            f"`output_size` must be one that such a convolution takes to the size of `x`, {ranges}, got {output_size!r}"
        )
        raise ValueError(msg)
    return results


def _full(axis: Axis) -> int:
    """How long everything is that is read under so many windows as `axis` has elements."""
    return (axis.size - 1) * axis.stride + axis.extent


def _settled(g: Geometry) -> Geometry:
    """The geometry with no step larger than what it steps over; ValueError where no memory could hold its arrays."""
    for shape_ in (g.x_shape, g.w_shape, g.y_shape):
        if math.prod(max(1, length) for length in shape_) > MOST_ELEMENTS:
            msg = (
                f"`padding` {tuple((a.lo, a.hi) for a in g.axes)} and the sizes must lead to arrays that can be "
                f"addressed, got {g.x_shape} to {g.y_shape} (channels first), and {g.w_shape}"
            )
            raise ValueError(msg)
    return replace(g, axes=tuple(axis.settled() for axis in g.axes))


def check_memory(shape_: Shape, itemsize: int, dtype: object) -> None:
    """MemoryError where no memory holds a result of this shape; before any of it is computed."""
    size = math.prod(shape_) * itemsize
    if size > MOST_BYTES:
        msg = (
            f"the result must fit into memory, got {shape_} of {dtype}, which takes {in_bytes(size)}: "
            "take smaller sizes, or Dask arrays, which need not be in memory as a whole"
        )
        raise MemoryError(msg)


def in_bytes(size: float) -> str:
    """A number of bytes, to be read."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if size < 1000:
            return f"{size:.3g} {prefix}B"
        size /= 1000
    return f"{size:.3g} EB"


def filter_axes(w_layout: str, rank: int) -> tuple[int, ...]:
    """Where the axes ``(c_out, c_in / groups, *kernel)`` are in filters of this order."""
    letters = w_layout.replace("...", "." * rank)
    return (letters.index("o"), letters.index("i"), *(at for at, letter in enumerate(letters) if letter == "."))


def _place(letter: str, w_layout: str, written: str) -> str:
    """The axis of the filters' channels, with the `w_layout` as it was `written` where it is not the default."""
    of_three = w_layout.replace("...", ".")
    middle = "second" if of_three[2] == "." else "last but one"
    axis = f"{('first', middle, 'last')[of_three.index(letter)]} axis"
    return axis if w_layout == "oi..." else f'{axis} (`w_layout` "{written}")'


def suggest(error: ValueError, others: Iterable[tuple[str, Callable[[], object]]]) -> None:
    """Say in the error what the caller may have meant: the first of the `others` that raises none."""
    for hint, call in others:
        with suppress(ValueError, TypeError, MemoryError):
            call()
            error.args = (f"{error}: {hint}",)
            return


def check_ranks(
    x_shape: Shape, w_shape: Shape, names: tuple[str, str], *, channels_last: bool, w_layout: str = "oi..."
) -> None:
    """ValueError unless both have as many axes as they must, with what to write instead; in the caller's layout."""
    x, w = names
    order = "o...i" if channels_last else "oi..."
    more = len(w_shape) - len(x_shape)
    if len(x_shape) < 3:
        msg = f"`{x}` must have a batch, a channel and at least one spatial axis, got shape {x_shape}"
        raise ValueError(msg + lacking(x, more or 2, "image", order))
    if more:
        msg = f"`{w}` must have as many axes as `{x}`, got shapes {w_shape} and {x_shape}"
        hint = lacking(x, more, "image", order) or lacking(w, -more, "filter", w_layout)
        raise ValueError(msg + hint)


def check_order(pooling: str, kind: Kind, dtypes: tuple[tuple[str, DType], ...]) -> None:
    """TypeError for numbers of which there is no largest, or no mean."""
    orders = pooling.startswith("max")
    if kind == ("complex" if orders else "integer"):
        given = ", ".join(f"`{name}` {dtype}" for name, dtype in dtypes)
        takes = "integers and real numbers" if orders else "real and complex floating-point numbers"
        hint = "take the real part, or the magnitude" if orders else "convert to float32, for example"
        msg = f"`{pooling}` takes {takes}, got {given}: {hint}"
        raise TypeError(msg)


def check_counts(g: Geometry, padding: object) -> None:
    """ValueError where a mean would be one of no elements."""
    if g.is_blind:
        msg = f"`padding` must leave an element in every window that does not count it, got {padding!r}"
        msg += f" for kernels of size {g.kernel} and an input of size {g.size}"
        raise ValueError(msg)


def lacking(name: str, axes: int, one: str, order: str = "oi...") -> str:
    """What to write for an array that lacks so many axes, whose `order` is one of `W_LAYOUTS`."""

    def with_new(letters: str) -> str:
        items = ["..." if item == "." else "None" if item in letters else ":" for item in order.replace("...", ".")]
        index = ", ".join(items).replace(":, ...", "...").replace("..., :", "...")
        return f"`{name}[{index.removesuffix(', ...')}]`"

    if name.endswith("_shape"):
        return ""
    if axes == 1:
        return f": write {with_new('o')} for one {one}, {with_new('i')} for many of one channel"
    return f": write {with_new('oi')} for one {one} of one channel" if axes == 2 else ""


def _check_groups(groups: int, c_in: int, c_out: int) -> None:
    if groups < 1 or c_in % groups or c_out % groups:
        msg = f"`groups` must divide the {c_in} input and the {c_out} output channels, got {groups}"
        raise ValueError(msg)


def _axes(size: Sequence[int], kernel: Sequence[int], stride: object, dilation: object) -> list[Axis]:
    if min(kernel) < 1:
        msg = f"the kernel must have a tap on every spatial axis, got size {tuple(kernel)}"
        raise ValueError(msg)
    strides = per_axis("stride", stride, len(size), least=1)
    dilations = per_axis("dilation", dilation, len(size), least=1)
    return [Axis(*numbers) for numbers in zip(size, kernel, strides, dilations, strict=True)]


def _paddings(padding: object, axes: list[Axis]) -> list[tuple[int, int]]:
    """One (lo, hi) pair per axis."""
    if isinstance(padding, str):
        if padding == "valid":
            return [(0, 0) for _ in axes]
        if padding in ("same", "same_lower"):
            totals = [max(0, (-(-a.size // a.stride) - 1) * a.stride + a.extent - a.size) for a in axes]
            return [(t // 2, t - t // 2) if padding == "same" else (t - t // 2, t // 2) for t in totals]
        msg = f"`padding` must be one of {PADDINGS} or made of integers, got {padding!r}"
        numbers = {"full": tuple(a.extent - 1 for a in axes), "causal": tuple((a.extent - 1, 0) for a in axes)}
        known = numbers | {name: f'"{name}"' for name in PADDINGS}
        raise ValueError(msg + (f": write {known[padding.lower()]}" if padding.lower() in known else ""))
    entries = padding if isinstance(padding, tuple) else (padding,) * len(axes)
    pairs = [entry if isinstance(entry, tuple) else (entry, entry) for entry in entries]
    if len(pairs) != len(axes) or any(len(pair) != 2 for pair in pairs):
        msg = f"`padding` must have one int or one (lo, hi) pair per spatial axis ({len(axes)}), got {padding!r}"
        if len(entries) == 2 * len(axes) and ONLY_INTEGERS.issuperset(map(type, entries)):
            flat = tuple(zip(entries[::2], entries[1::2], strict=True))
            msg += f": write {flat[::-1]}" + (
                ", if these count from the last axis, as F.pad's" if len(axes) > 1 else ""
            )
        elif pairs[:2] == [(0, 0), (0, 0)] and len(pairs) == 2 + len(axes):
            msg += f": write {tuple(pairs[2:])}, without batch and channels"
        raise ValueError(msg)
    return [(integer("padding", lo), integer("padding", hi)) for lo, hi in pairs]
