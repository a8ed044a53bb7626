"""cuDNN's convolutions: graphs of one node, which NVIDIA's frontend builds, and which take memory by its address.

A graph belongs to one geometry in one dtype, in memory that lies in the order of the caller's arrays without a gap:
what lies in another way is copied. It gives half types for half types. Where float32 is wanted of these, they are
converted, and multiplied by the units for TF32, which holds each of them exactly.
"""

import threading
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import cudnn
import cupy

from ..._axis import Axis
from ..._geometry import Geometry
from ..._typing import Array, DType, Index, Shape
from ...algorithms import RefusedError
from ...primitives import inverse

NAME = "cudnn"
#: By dtype: cuDNN's name for it, and for the one that it computes in.
TYPES = {
    "float16": ("HALF", "FLOAT"),
    "bfloat16": ("BFLOAT16", "FLOAT"),
    "float32": ("FLOAT", "FLOAT"),
    "float64": ("DOUBLE", "DOUBLE"),
}
#: By function: cuDNN's name for it; its operands in our order, as cuDNN calls them and what they are; what comes out.
FUNCTIONS = {
    "conv": ("conv_fprop", (("image", "x"), ("weight", "w")), "y"),
    "input_grad": ("conv_dgrad", (("loss", "y"), ("filter", "w")), "x"),
    "weight_grad": ("conv_wgrad", (("loss", "y"), ("image", "x")), "w"),
}
#: What rounds more than the plain sum does, or in another order in every run.
UNWANTED = (
    *("NONDETERMINISTIC", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION"),
    *("FFT", "WINOGRAD", "WINOGRAD_TILE_4x4", "WINOGRAD_TILE_6x6", "WINOGRAD_TILE_13x13"),
)
#: Memory that cuDNN is handed begins at multiples of so many bytes.
ALIGNMENT = 16
#: Graphs that a thread keeps.
MOST_GRAPHS = 256


class Task(NamedTuple):
    """What a graph is for."""

    function: str
    #: Without negative padding.
    geometry: Geometry
    dtype: str
    #: Whether products of float32 may be those of TF32.
    tf32: bool
    #: Bytes that cuDNN may take.
    workspace: int


class Ready(NamedTuple):
    """A graph and its tensors: the operands in our order, and the result."""

    graph: Any
    tensors: list[Any]


def convolve(
    function: str,
    g: Geometry,
    a: Array,
    b: Array,
    out: Array | None,
    *,
    accumulator: DType,
    tf32: bool,
    workspace: int,
) -> Array:
    """One of the three functions, in `out` or in new memory for numbers of the dtype `accumulator`."""
    _, ((_, first), (_, second)), result = FUNCTIONS[function]
    inner, seen = _inner(g)
    whole = _empty(_shapes(g)[result], accumulator, g) if out is None else out
    target = whole[seen] if result == "x" else whole
    nothing = any(0 in shape for shape in _shapes(inner).values())
    if nothing or target.shape != whole.shape:
        whole.fill(0)  # what no window sees
    if nothing:
        return whole
    a, b = (array[seen] if role == "x" else array for array, role in ((a, first), (b, second)))
    halves = a.itemsize == 2
    task = Task(function, inner, whole.dtype.name, whole.dtype == "float32" and (tf32 or halves), workspace)
    made = target if _lies(target, g) else _empty(target.shape, target.dtype, g)
    _own.run(task, _block(a, made.dtype, g), _block(b, made.dtype, g), made)
    if made is not target:
        target[...] = made
    return whole


# Geometry


def _inner(g: Geometry) -> tuple[Geometry, Index]:
    """The same convolution of what it sees of x, without negative padding; and where that lies in x."""
    axes, seen = [], [slice(None), slice(None)]
    for axis in map(_eased, g.axes):
        part = axis.kept[1]
        axes.append(replace(axis, size=part.stop - part.start, lo=max(0, axis.lo), hi=max(0, axis.hi)).settled())
        seen.append(part)
    return replace(g, axes=tuple(axes)), tuple(seen)


def _eased(axis: Axis) -> Axis:
    """The axis with as much padding behind as before where that makes no further output: cuDNN has more for it."""
    most = axis.hi + axis.stride - 1 - (axis.padded - axis.extent) % axis.stride
    return replace(axis, hi=next(hi for hi in (max(0, axis.lo), 0, axis.hi) if axis.hi <= hi <= most))


def _shapes(g: Geometry) -> dict[str, Shape]:
    return {"x": g.x_shape, "w": g.w_shape, "y": g.y_shape}


# Memory


def _order(g: Geometry) -> tuple[int, ...]:
    """The axes of the images, and of the filters, in the order in which they lie in memory."""
    return g.in_layout(tuple(range(2 + len(g.axes))))


def _strides(shape: Shape, g: Geometry) -> list[int]:
    """Elements from one to the next on every axis, where there is no gap."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(_order(g)):
        strides[axis], step = step, step * shape[axis]
    return strides


def _lies(a: Array, g: Geometry) -> bool:
    """Whether `a` is memory as cuDNN takes it."""
    found = zip(a.shape, a.strides, _strides(a.shape, g), strict=True)
    return a.data.ptr % ALIGNMENT == 0 and all(n == 1 or stride == a.itemsize * step for n, stride, step in found)


def _empty(shape: Shape, dtype: DType, g: Geometry) -> Array:
    order = _order(g)
    return cupy.empty([shape[axis] for axis in order], dtype).transpose(inverse(order))


def _block(a: Array, dtype: DType, g: Geometry) -> Array:
    """`a` in this dtype, as cuDNN takes it."""
    if a.dtype == dtype and _lies(a, g):
        return a
    made = _empty(a.shape, dtype, g)
    made[...] = a
    return made


# Graphs


def describe(task: Task, **where: Any) -> Ready:
    """The graph of a task, for a handle or for what else says where it is to run."""
    name, operands, result = FUNCTIONS[task.function]
    io, compute = (getattr(cudnn.data_type, kind) for kind in TYPES[task.dtype])
    g = task.geometry
    if len(g.axes) == 1:  # a line is an image of one row
        g = replace(g, axes=(Axis(1, 1), *g.axes))
    graph = cudnn.pygraph(io_data_type=io, intermediate_data_type=compute, compute_data_type=compute, **where)
    sizes = {role: {"dim": list(shape), "stride": _strides(shape, g)} for role, shape in _shapes(g).items()}
    tensors = {kind: graph.tensor(**sizes[role], data_type=io, name=role) for kind, role in operands}
    node = getattr(graph, name)(
        **tensors,
        pre_padding=[axis.lo for axis in g.axes],
        post_padding=[axis.hi for axis in g.axes],
        stride=[axis.stride for axis in g.axes],
        dilation=[axis.dilation for axis in g.axes],
        compute_data_type=compute,
    )
    node.set_output(True).set_data_type(io).set_dim(sizes[result]["dim"]).set_stride(sizes[result]["stride"])
    return Ready(graph, [*tensors.values(), node])


def build(graph: Any, task: Task) -> None:
    """Choose an engine and make it ready: the first that is exact, gives the same in every run, and fits."""
    names = UNWANTED if task.dtype != "float32" or task.tf32 else (*UNWANTED, "TENSOR_CORE")
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.deselect_numeric_notes([getattr(cudnn.numerical_note, name) for name in names])
    graph.deselect_workspace_greater_than(task.workspace)
    graph.check_support()
    graph.build_plans(cudnn.build_plan_policy.HEURISTICS_CHOICE)


class _Own(threading.local):
    """The handles and the graphs of one thread, since cuDNN's are not to be shared."""

    def __init__(self) -> None:
        self.handles: dict[int, Any] = {}
        self.ready = lru_cache(maxsize=MOST_GRAPHS)(self._made)

    def run(self, task: Task, a: Array, b: Array, out: Array) -> None:
        """What the graph of a task makes of `a` and `b`, in CuPy's current stream."""
        device = out.device.id
        ready = self.ready(device, task)
        if isinstance(ready, str):
            raise RefusedError(NAME, ready)
        handle = self.handles[device]
        cudnn.set_stream(handle, cupy.cuda.get_current_stream().ptr)
        space = cupy.empty(max(1, ready.graph.get_workspace_size()), "uint8")
        addresses = {tensor: array.data.ptr for tensor, array in zip(ready.tensors, (a, b, out), strict=True)}
        ready.graph.execute(addresses, space.data.ptr, handle=handle)

    def _made(self, device: int, task: Task) -> Ready | str:
        """The graph of a task on the current device, or why cuDNN has none."""
        try:
            if device not in self.handles:
                cupy.cuda.device.get_cublas_handle()  # cuDNN looks for cuBLAS by its name, and CuPy knows where it is
                self.handles[device] = cudnn.create_handle()
            ready = describe(task, handle=self.handles[device])
            build(ready.graph, task)
        except (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError) as error:
            return f"cuDNN says {error}"
        return ready


_own = _Own()
