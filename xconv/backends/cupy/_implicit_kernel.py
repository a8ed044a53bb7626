"""The kernels of implicit matrix products for one geometry: their sizes, their text, and how many blocks they take."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product as pairs
from typing import Any, NamedTuple

import numpy as np

from ..._axis import Axis
from ..._geometry import Geometry
from ..._typing import Shape
from ._lines import WIDEST, Memory
from ._operands import CONVOLUTION, PLACES, WEIGHT_GRADIENT
from ._tensor_cores import INSTRUCTIONS, KERNEL, SLICE, TYPES

#: Bits in which it is kept which taps are inside.
FEW_TAPS = 32
#: A place that no tap reaches from, and how far one may be.
OUTSIDE, FARTHEST = -(2**30), 2**29
#: The numbers that are in every text: of its tile, and whether something holds.
FLAGS = ("FEW", "WHOLE", "PAIRED")
OF_TILE = ("THREADS", "BLOCKS", "STAGES", "ROWS", "FILTERS", "WARPS_ALONG", "WARP_ROWS", "WARP_FILTERS", "OWN_ROWS")
WRITTEN = {*OF_TILE, *FLAGS}
#: Blocks that fill a large device: the gradient of the filters is summed in so many lanes that there are no more.
FILL = 396
#: Phases for which an input gradient has a launch each, and a text each, at most.
MOST_PHASES, MOST_OWN = 64, 9


class Tile(NamedTuple):
    """Rows and filters of a block of threads, and of each of its warps; slices it keeps; blocks a multiprocessor.

    There is a thread for every row.
    """

    rows: int
    filters: int
    warp_rows: int
    warp_filters: int
    stages: int = 3
    blocks: int = 3

    @property
    def threads(self) -> int:
        return 32 * (self.rows // self.warp_rows) * (self.filters // self.warp_filters)


#: For few filters of a group, and for more.
NARROW, TILE = Tile(128, 32, 32, 32), Tile(128, 64, 64, 32)


def tile(filters: int) -> Tile:
    return NARROW if filters <= NARROW.filters else TILE


class Product(NamedTuple):
    """A kernel: its name, its sizes and types, what it does with them, and how many blocks of threads it takes."""

    name: str
    head: str
    kernel: str
    blocks: int
    threads: int
    #: What is handed over behind its arrays, where the sizes are not in the text.
    numbers: tuple[np.integer[Any], ...] = ()

    @property
    def code(self) -> str:
        return self.head + INSTRUCTIONS + self.kernel


class Form(NamedTuple):
    """Which kernel it is: its name and text, how its elements are read and multiplied, and whether sizes are in it."""

    verb: str
    kernel: str
    packed: bool
    tf32: bool
    literal: bool


class Side(NamedTuple):
    """One axis of a phase, the pixels of the result that are a multiple of the stride apart, as a convolution.

    Pixel q reads ``q * stride - lo + j * dilation`` for tap j.
    """

    #: The pixels: how many, the first in the result, and from one to the next.
    size: int
    first: int
    every: int
    #: The taps of the filters.
    taps: slice
    kernel: int
    stride: int
    dilation: int
    lo: int


class Phase(NamedTuple):
    """A convolution of the source, whose pixels are some of the result's; and where its filters begin among all."""

    sides: tuple[Side, ...]
    #: Elements of a row of the filters: those of all taps, and zeros up to whole slices.
    depth: int
    start: int

    @property
    def kernel(self) -> Shape:
        return tuple(side.kernel for side in self.sides)


def phases(g: Geometry, itemsize: int, *, adjoint: bool) -> list[Phase]:
    """The forward pass is one phase; the input gradient has one for every place between two strides.

    What their filters are does not depend on where a tile of the convolution begins.
    """
    channels, filters = (g.c_out, g.c_in) if adjoint else (g.c_in, g.c_out)
    width, start, found = SLICE // itemsize, 0, []
    for sides in pairs(*(_met(a) if adjoint else [_whole(a)] for a in g.axes)):
        length = math.prod(side.kernel for side in sides) * (channels // max(1, g.groups))
        found.append(Phase(sides, -(-length // width) * width, start))
        start += filters * found[-1].depth
    return found


def filters_size(g: Geometry, itemsize: int, *, adjoint: bool) -> int:
    """Elements of the filters of all phases."""
    last = phases(g, itemsize, adjoint=adjoint)[-1]
    return last.start + (g.c_in if adjoint else g.c_out) * last.depth


def _whole(a: Axis) -> Side:
    return Side(a.out, 0, 1, slice(0, a.kernel), a.kernel, a.stride, a.dilation, a.lo)


def _met(a: Axis) -> Iterator[Side]:
    """A pixel i of dx is met by tap t where the stride divides ``i + lo - t * dilation``."""
    step = a.stride // math.gcd(a.stride, a.dilation)
    for remainder in range(a.stride):
        first = next((t for t in range(min(step, a.kernel)) if (remainder - t * a.dilation) % a.stride == 0), a.kernel)
        taps, pixel = range(first, a.kernel, step), (remainder - a.lo) % a.stride
        size = max(0, -(-(a.size - pixel) // a.stride))
        lo = (first * a.dilation - pixel - a.lo) // a.stride
        dilation = -step * a.dilation // a.stride
        yield Side(size, pixel, a.stride, slice(first, a.kernel, step), len(taps), 1, dilation, lo)


def convolutions(
    g: Geometry, source: Memory, result: Memory, *, adjoint: bool, tf32: bool = False, literal: bool = True
) -> list[Product]:
    """The kernels for ``y = conv(x, w)``; with `adjoint`, for dx, where dy is the source."""
    groups = max(1, g.groups)
    channels, filters = (g.c_out // groups, g.c_in // groups) if adjoint else (g.c_in // groups, g.c_out // groups)
    packed, found = _packed(source, channels), []
    all_phases = phases(g, source.itemsize, adjoint=adjoint)
    literal = literal and len(all_phases) <= MOST_OWN
    for number, phase in enumerate(all_phases):
        sides, size = phase.sides, tuple(side.size for side in phase.sides)
        pixels, taps = g.batch * math.prod(size), math.prod(phase.kernel)
        if not pixels:
            continue
        made = tile(filters)
        margin = max(
            abs(s.lo) + abs(s.kernel * s.dilation) + s.stride + abs(a.hi) for s, a in zip(sides, g.axes, strict=True)
        )
        numbers = {
            **_sizes(made, filters, pixels, groups, phase.depth * source.itemsize // SLICE),
            **_source(source, channels, sides),
            "TAPS": taps,
            "FEW": int(literal and taps <= FEW_TAPS),
            "OWN_ROWS": made.rows * 4 // made.threads if packed else 1,
            "DEPTH": phase.depth,
            "WHOLE": int(channels % (SLICE // source.itemsize) == 0),
            "PIXELS": pixels,
            "U_START": phase.start,
            "PAIRED": int(_paired(result, filters)),
            **_axes("RESULT", size, 1),
            **_axes("RESULT_STEP", [step * s.every for step, s in zip(result.steps[2:], sides, strict=True)], 0),
            "RESULT_START": result.start + sum(step * s.first for step, s in zip(result.steps[2:], sides, strict=True)),
            "RESULT_N": result.steps[0],
            "RESULT_C": result.steps[1],
        }
        end = phase.start + (groups * filters + made.filters) * phase.depth
        reach = max(pixels + made.rows, end, _reach(source, margin), _reach(result))
        verb = f"implicit_input_grad_p{number}" if adjoint and literal else "implicit"
        kernel = PLACES + CONVOLUTION + KERNEL
        form = Form(verb, kernel, packed=packed, tf32=tf32, literal=literal)
        found.append(_product(form, g, source, result, numbers, reach))
    return found


def most_lanes(g: Geometry) -> int:
    """Partial sums of the filters' gradient, each of some pixels: as many as fill a device, at most."""
    groups = max(1, g.groups)
    made, rows = tile(g.c_out // groups), g.c_in // groups * g.taps
    blocks = -(-rows // made.rows) * -(-(g.c_out // groups) // made.filters) * groups
    return max(1, min(FILL // max(1, blocks), _slices(g) // 4))


def lanes(g: Geometry) -> int:
    """The same, all of them of as many slices but the last."""
    each = -(-_slices(g) // most_lanes(g))
    return max(1, -(-_slices(g) // max(1, each)))


def _slices(g: Geometry) -> int:
    return -(-g.batch * g.pixels * 4 // SLICE)


def weight_gradient(g: Geometry, x: Memory, dy: Memory, *, tf32: bool = False, literal: bool = True) -> list[Product]:
    """The kernel for the partial sums ``(lanes, *w_shape)`` of the filters' gradient, in float32."""
    groups = max(1, g.groups)
    channels, filters = g.c_in // groups, g.c_out // groups
    made, pixels, summed = tile(filters), g.batch * g.pixels, lanes(g)
    rows = channels * g.taps
    numbers = {
        **_sizes(made, filters, rows, groups, -(-_slices(g) // summed)),
        **_source(x, channels, g.axes),
        "BLOCKS_OF_ROWS": -(-rows // made.rows),
        "TAPS": g.taps,
        "FEW": int(literal and g.taps <= FEW_TAPS),
        "PIXELS": pixels,
        "PAIRED": 0,
        **_axes("OUT", g.out, 1),
        **_axes("DY_STEP", dy.steps[2:], 0),
        "DY_START": dy.start,
        "DY_N": dy.steps[0],
        "DY_C": dy.steps[1],
        "RESULT_C": rows,
    }
    margin = max(abs(a.lo) + abs(a.hi) + a.extent + a.stride for a in g.axes)
    reach = max(_reach(x, margin), _reach(dy), summed * math.prod(g.w_shape), pixels + SLICE * summed)
    together = abs(x.steps[-1]) == 1
    kernel = ("#define PIXELS_TOGETHER\n" if together else "") + PLACES + WEIGHT_GRADIENT + KERNEL
    form = Form("implicit_weight_grad" + "_together" * together, kernel, packed=False, tf32=tf32, literal=literal)
    found = _product(form, g, x, x, numbers, reach)
    return [found._replace(blocks=found.blocks * summed)]


def _product(
    form: Form, g: Geometry, source: Memory, result: Memory, numbers: Mapping[str, int], reach: int
) -> Product:
    three = source.dtype == "float32" and not form.tf32
    reach = max(reach, *map(abs, numbers.values()))
    bits, wide = (64, "long long") if reach >= 2**31 else (32, "int")
    element, kind = TYPES[source.dtype]
    pack = WIDEST // source.itemsize if form.packed else 1
    which = _name(g) if form.literal else "_".join(str(numbers.get(key, 0)) for key in ("ROWS", "FILTERS", *FLAGS))
    name = f"xconv_{form.verb}_{which}_{source.dtype}_{result.dtype}_i{bits}_{pack}{'_three' * three}"
    lines = [f"#define {kind}"] + ["#define PACKED"] * form.packed + ["#define COPIED"] * (source.itemsize == 4)
    lines += ["#define THREE"] * three + [f"#define NAME {name}", f"typedef {wide} I;", f"typedef unsigned {wide} N;"]
    lines += [f"typedef {element} E;", f"typedef {TYPES[result.dtype][0]} U;"]
    always = {
        "V": WIDEST // source.itemsize,
        "OUTSIDE": OUTSIDE,
        **{key: numbers[key] for key in numbers if key in WRITTEN},
    }
    sizes = {key: n for key, n in numbers.items() if key not in WRITTEN}  # which are multiplied by places along axes
    handed = {} if form.literal else sizes
    lines += [f"constexpr int {key} = {n};" for key, n in always.items()]
    lines += [f"constexpr I {key} = {n};" for key, n in sizes.items() if key not in handed]
    lines += ["struct Numbers {", *(f"  I {key};" for key in handed), "};", f"#define NUMBERS {', '.join(handed)}"]
    lines += ["#define PARAMETERS " + "".join(f", I {key}" for key in handed)]
    lines += ["constexpr float LARGEST = 3.402823466e38f;", "struct alignas(16) Chunk { E v[V]; };"]
    blocks = numbers["BLOCKS_OF_FILTERS"] * -(-numbers["LAST_ROW"] // numbers["ROWS"]) * numbers["GROUPS"]
    values = tuple([(np.int64 if bits == 64 else np.int32)(n) for n in handed.values()])
    return Product(name, "\n".join(lines) + "\n", form.kernel, blocks, numbers["THREADS"], values)


def _sizes(made: Tile, filters: int, rows: int, groups: int, steps: int) -> dict[str, int]:
    """Those of the product and its tiles."""
    return {
        "THREADS": made.threads,
        "BLOCKS": made.blocks,
        "STAGES": made.stages,
        "ROWS": made.rows,
        "FILTERS": made.filters,
        "WARPS_ALONG": made.filters // made.warp_filters,
        "WARP_ROWS": made.warp_rows,
        "WARP_FILTERS": made.warp_filters,
        "BLOCKS_OF_FILTERS": -(-filters // made.filters),
        "GROUPS": groups,
        "LAST_ROW": rows,
        "LAST_FILTER": filters,
        "STEPS": steps,
    }


def _source(source: Memory, channels: int, axes: Sequence[Axis | Side]) -> dict[str, int]:
    """Where the source lies, and what the taps read of it."""
    return {
        "CHANNELS": max(1, channels),
        **_axes("KERNEL", [max(1, a.kernel) for a in axes], 1),
        **_axes("STRIDE", [a.stride for a in axes], 1),
        **_axes("DILATION", [a.dilation for a in axes], 1),
        **_axes("LO", [a.lo for a in axes], 0),
        **_axes("SOURCE", source.shape[2:], 1),
        **_axes("SOURCE_STEP", [step * (n > 1) for step, n in zip(source.steps[2:], source.shape[2:], strict=True)], 0),
        "SOURCE_START": source.start,
        "SOURCE_N": source.steps[0],
        "SOURCE_C": source.steps[1],
    }


def _name(g: Geometry) -> str:
    """Says what the kernel is specialised to."""
    axes = {"": g.size, "k": g.kernel} | {
        letter: tuple(getattr(axis, field) for axis in g.axes)
        for letter, field in (("s", "stride"), ("d", "dilation"), ("l", "lo"), ("h", "hi"))
    }
    tags = "_".join(letter + "x".join(map(str, values)) for letter, values in axes.items()).replace("-", "m")
    return f"n{g.batch}_c{g.c_in}_o{g.c_out}_g{g.groups}_{tags}"


def _axes(name: str, values: Any, missing: int) -> dict[str, int]:
    """A number for each of three axes, of which the first may be missing."""
    return {f"{name}{a}": value for a, value in enumerate((*[missing] * (3 - len(values)), *values))}


def _packed(source: Memory, channels: int) -> bool:
    """Whether 16 bytes can be copied at once: channels are neighbours, fill whole chunks, and begin where they must."""
    numbers = (channels, source.start, *_steps_taken(source))
    together = source.steps[1] == 1 and source.aligned and channels > 0
    return together and all(number * source.itemsize % WIDEST == 0 for number in numbers)


def _paired(result: Memory, filters: int) -> bool:
    """Whether two channels can be written at once."""
    numbers = (filters, result.start, *_steps_taken(result))
    return result.steps[1] == 1 and result.aligned and all(number % 2 == 0 for number in numbers)


def _steps_taken(memory: Memory) -> Shape:
    """From one pixel to the next, along axes that have more than one."""
    return tuple(step for axis, step in enumerate(memory.steps) if axis != 1 and memory.shape[axis] > 1)


def _reach(memory: Memory, margin: int = 0) -> int:
    """The largest offset that is computed: so many pixels beside the image, on any side."""
    sides = [size + 2 * margin * (axis > 1) for axis, size in enumerate(memory.shape)]
    return memory.start + sum(abs(step) * size for step, size in zip(memory.steps, sides, strict=True))
