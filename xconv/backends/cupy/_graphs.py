"""cuDNN's convolutions: graphs of one node, which NVIDIA's frontend builds, and which take memory by its address.

A graph belongs to one geometry in one dtype, in memory that lies in the order of the caller's arrays without a gap:
what lies in another way is copied. It gives half types for half types. Where float32 is wanted of these, they are
converted, and multiplied by the units for TF32, which holds each of them exactly.
"""

import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import cudnn
import cupy
import numpy as np

from ..._axis import Axis
from ..._geometry import Geometry
from ..._typing import Array, DType, Index, Shape
from ...algorithms import RefusedError
from ._steps import CLEAR, COPY, Doer, Places, Pointers, copied, each, ordered

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


def convolve(task: Task, a: Array, b: Array, out: Array | None, do: Doer) -> Array:
    """One of the three functions, in `out` or in new memory of the task's dtype; negative padding is cut off here."""
    g, (_, ((_, first), (_, second)), result) = task.geometry, FUNCTIONS[task.function]
    inner, seen = _inner(g)
    whole = _new(do, _shapes(g)[result], np.dtype(task.dtype), g) if out is None else out
    target = whole[seen] if result == "x" else whole
    if any(0 in shape for shape in _shapes(inner).values()):
        return each(do, CLEAR, whole)
    tf32 = whole.dtype == "float32" and (task.tf32 or a.itemsize == 2)
    step = _step(do.device_of(whole), task._replace(geometry=inner, dtype=whole.dtype.name, tf32=tf32))
    _own.graph_of(step)  # or it is refused, before anything is done
    if target.shape != whole.shape:
        each(do, CLEAR, whole)  # what no window sees
    made = target if _lies(target, g) else _new(do, target.shape, target.dtype, g)
    operands = [array[seen] if role == "x" else array for array, role in ((a, first), (b, second))]
    do.perform(step, *(_block(do, array, made.dtype, g) for array in operands), made)
    if made is not target:
        each(do, COPY, made, target)
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


def _new(do: Doer, shape: Shape, dtype: DType, g: Geometry) -> Array:
    return ordered(do, shape, dtype, _order(g))


def _block(do: Doer, a: Array, dtype: DType, g: Geometry) -> Array:
    """`a` in this dtype, as cuDNN takes it."""
    return a if a.dtype == dtype and _lies(a, g) else copied(do, a, dtype, _order(g))


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


@dataclass(frozen=True, eq=False)
class Convolution:
    """What the graph of a task makes of two arrays, in CuPy's current stream: a step, which has a graph a thread."""

    device: int
    task: Task

    def __call__(self, pointers: Pointers, places: Places) -> None:
        (graph, tensors), handle, size = _own.graph_of(self)
        cudnn.set_stream(handle, cupy.cuda.get_current_stream().ptr)
        space = cupy.cuda.alloc(size)
        addresses = dict(zip(tensors, [pointers[block].ptr + at for block, at in places], strict=True))
        # Told which shapes to override, if only that none are, the frontend does not describe every address anew.
        graph.execute(addresses, space.ptr, handle=handle, override_uids=())


#: One step for equal tasks, so that a call of a program need not compare these.
_step = lru_cache(maxsize=MOST_GRAPHS)(Convolution)


class _Own(threading.local):
    """The handles and the graphs of one thread, since cuDNN's are not to be shared."""

    def __init__(self) -> None:
        self.handles: dict[int, Any] = {}
        self.made = lru_cache(maxsize=MOST_GRAPHS)(self._made)

    def graph_of(self, step: Convolution) -> tuple[Ready, Any, int]:
        """The graph on the current device, its handle, and the bytes of memory that it takes; or RefusedError."""
        made = self.made(step)
        if isinstance(made, str):
            raise RefusedError(NAME, made)
        return made

    def _made(self, step: Convolution) -> tuple[Ready, Any, int] | str:
        """The same, or why cuDNN has none."""
        try:
            if step.device not in self.handles:
                cupy.cuda.device.get_cublas_handle()  # cuDNN looks for cuBLAS by its name, and CuPy knows where it is
                self.handles[step.device] = cudnn.create_handle()
            handle = self.handles[step.device]
            ready = describe(step.task, handle=handle)
            build(ready.graph, step.task)
            return ready, handle, max(1, ready.graph.get_workspace_size())
        except (cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError) as error:
            return f"cuDNN says {error}"


_own = _Own()
