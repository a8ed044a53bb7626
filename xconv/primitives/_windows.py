"""The windows of images, their adjoint, and padding that is read from the image, in the pure array-API standard."""

import math

from .._axis import Axis, Run
from .._geometry import Geometry
from .._typing import Array, Namespace, Shape
from ._pieces import along, inverse, pad, zeros


def columns(xp: Namespace, x: Array, g: Geometry) -> Array:
    """Every window of the zero-padded ``x (n, c, *size)``, as ``(n, c, *kernel, *out)`` in the order of `g`."""
    x, g = _gathered(xp, x, g), g.gathered()
    for i, axis in enumerate(g.axes):  # x is (n, c, *kernel[:i], *out[:i], *size[i:])
        at = 2 + 2 * i
        x = pad(xp, x, at, axis.lo, axis.hi)
        starts = range(0, axis.extent, axis.dilation)
        taps = [x[along(at, slice(start, start + axis.span, axis.stride))] for start in starts]
        x = _stacked(xp, taps, 2 + i, g.order if i == len(g.axes) - 1 else ())
    return x


def _stacked(xp: Namespace, taps: list[Array], at: int, order: Shape) -> Array:
    """The taps along a new axis, in memory whose axes have this order."""
    if not order:
        return xp.stack(taps, axis=at)
    others = tuple(axis - (axis > at) for axis in order if axis != at)
    made = xp.stack([xp.permute_dims(tap, others) for tap in taps], axis=order.index(at))
    made = xp.reshape(xp.reshape(made, (-1,)), made.shape)  # a library may stack in the order in which the taps lie
    return xp.permute_dims(made, inverse(order))


def _gathered(xp: Namespace, x: Array, g: Geometry, at: int = 2) -> Array:
    """What the taps read of `x` on the axes from `at` on where they lie far apart, with zeros from the padding."""
    if True not in g.far[at - 2 :]:
        return x
    if not g.far[at - 2]:
        return _gathered(xp, x, g, at + 1)
    axis, parts = g.axes[at - 2], []
    for outputs, elements in map(axis.seen, range(axis.kernel)):
        part = _gathered(xp, x[along(at, elements)], g, at + 1)
        parts.append(pad(xp, part, at, outputs.start, axis.out - outputs.stop))
    return xp.concat(parts, axis=at)


def folded(xp: Namespace, cols: Array, g: Geometry) -> Array:
    """The adjoint of `columns`: adds each element of the columns to the input element that it was read from."""
    for i, axis in reversed(list(enumerate(g.axes))):  # cols is (n, c, *kernel[:i+1], *out[:i+1], *size[i+1:])
        taps = [cols[along(2 + i, t)] for t in range(axis.kernel)]
        cols = pad(xp, fold(xp, taps, 2 + 2 * i, axis), 2 + 2 * i, -axis.lo, -axis.hi)
    # Where nothing was added up, the result would share its memory with the columns.
    return cols * 1 if g.taps == 1 else cols


def fold(xp: Namespace, taps: list[Array], at: int, axis: Axis) -> Array:
    """Sum the taps along the axis `at`, each shifted to its place in the padded input.

    Output o of a tap at offset t = q * stride + r falls on position o + q of the sub-grid with phase r.
    """
    length = -(-axis.padded // axis.stride)
    blank = zeros(xp, (*taps[0].shape[:at], length, *taps[0].shape[at + 1 :]), taps[0].dtype, taps[0])
    phases = [blank] * axis.stride
    for t, tap in enumerate(taps):
        q, r = divmod(t * axis.dilation, axis.stride)
        shifted = pad(xp, tap, at, q, length - axis.out - q)
        phases[r] = shifted if phases[r] is blank else phases[r] + shifted
    if axis.stride == 1:
        return phases[0]
    grid = xp.stack(phases, axis=at + 1)
    grid = xp.reshape(grid, (*grid.shape[:at], length * axis.stride, *grid.shape[at + 2 :]))
    return grid[along(at, slice(0, axis.padded))]


def spare(g: Geometry) -> int:
    """Elements that `columns` and `folded` need at once beside the columns they make or take, at most."""
    *others, last = g.axes  # the last axis of im2col, and the first of col2im, is the largest step
    partial = math.prod(a.kernel * a.out for a in others) * (last.padded + last.stride)
    return math.prod(g.columns_shape) + g.batch * g.c_in * (5 * partial + 2 * math.prod(g.padded))


def columns_spare(g: Geometry) -> int:
    """Elements that `columns` alone needs at once beside those it makes, at most."""
    return spare(g.gathered())


def extend(xp: Namespace, x: Array, g: Geometry, at: int = 2) -> Array:
    """`x` with its padding written out from the axis `at` on; what a tile does not read of `x` is never copied."""
    if at == x.ndim:
        return x
    if g.pad_mode == "constant":
        axis = g.axes[at - 2]
        return extend(xp, pad(xp, x, at, axis.lo, axis.hi, g.pad_value), g, at + 1)
    runs = g.axes[at - 2].runs(g.pad_mode, slice(0, g.axes[at - 2].padded))
    parts = [follow(xp, extend(xp, x[along(at, run.source)], g, at + 1), run, at) for run in runs]
    return xp.concat(parts, axis=at) if len(parts) > 1 else parts[0]


def follow(xp: Namespace, x: Array, run: Run, at: int) -> Array:
    """What a run reads, from its source `x`."""
    if run.step < 0:
        x = xp.flip(x, axis=at)
    elif run.back:
        x = xp.concat([x, xp.flip(x[along(at, run.inner)], axis=at)], axis=at)
    if run.repeats > 1:
        before, behind = x.shape[:at], x.shape[at + 1 :]
        x = xp.broadcast_to(xp.expand_dims(x, axis=at), (*before, run.repeats, run.period, *behind))
        x = xp.reshape(x, (*before, run.repeats * run.period, *behind))
    return x


def retract(xp: Namespace, dx: Array, runs: tuple[Run, ...]) -> Array:
    """The adjoint of what `runs` read: the gradient of the padding, brought to where it was taken from."""
    for at, run in enumerate(runs, start=2):
        if run.repeats > 1:
            dx = xp.reshape(dx, (*dx.shape[:at], run.repeats, run.period, *dx.shape[at + 1 :]))
            dx = xp.sum(dx, axis=at, dtype=dx.dtype)
        if run.step < 0:
            dx = xp.flip(dx, axis=at)
        elif run.back:
            there, back = (dx[along(at, part)] for part in (slice(run.length), slice(run.length, run.period)))
            dx = there + pad(xp, xp.flip(back, axis=at), at, run.inner.start, run.inner.start)
    return dx
