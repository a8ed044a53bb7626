"""cuDNN on the memory of the host, behind NVIDIA's own frontend.

The frontend is real: it makes the graph, its tensors and its nodes, checks them, and keeps what was deselected. What
needs the library or a device is replaced: handles, the choice of an engine, and the run, which reads the graph that the
frontend holds and computes it with NumPy, at the addresses that it is handed.
"""

import contextlib
import ctypes
import math
import os
import subprocess
import tempfile
import threading
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import cupy
import ml_dtypes
import numpy as np
import pytest

#: All of cuDNN that the frontend asks before it knows where a graph will run.
VERSION = 'extern "C" unsigned long cudnnGetVersion() { return 92800; }'
DTYPES = {"HALF": np.float16, "BFLOAT16": ml_dtypes.bfloat16, "FLOAT": np.float32, "DOUBLE": np.float64}


def frontend():
    """NVIDIA's frontend, with a library that can tell its version and nothing else."""
    folder = Path(tempfile.mkdtemp())
    (folder / "version.cpp").write_text(VERSION)
    library = str(folder / "libcudnn.so.9")
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, str(folder / "version.cpp")], check=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder), prepend=os.pathsep)
        import cudnn
    return cudnn


cudnn = frontend()


class HostDnn:
    """The library: what it was asked for, and what it refuses."""

    def __init__(self, standin):
        self.standin = standin
        self.graphs, self.runs, self.handles = [], [], []
        #: By the name of a function, what cuDNN says to it.
        self.refused = {}
        self.stream = 4711

    @contextlib.contextmanager
    def installed(self):
        from xconv.backends.cupy import _cudnn, _graphs

        def made(**options):
            graph = HostGraph(**options)
            graph.library = self
            self.graphs.append(graph)
            return graph

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(cudnn, "pygraph", made)
            monkeypatch.setattr(cudnn, "create_handle", self.create_handle)
            monkeypatch.setattr(cudnn, "set_stream", lambda handle, stream: setattr(handle, "stream", stream))
            monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: SimpleNamespace(ptr=self.stream))
            monkeypatch.setattr(_graphs, "_own", _graphs._Own())
            monkeypatch.setattr(_cudnn, "find_spec", find_spec)
            yield self

    def create_handle(self):
        handle = cudnn.Handle(1 + len(self.handles), self.standin.entered[-1].id, 0)
        handle.thread = threading.get_ident()
        self.handles.append(handle)
        return handle

    @property
    def functions(self):
        """The functions that were run."""
        return [run.function for run in self.runs]


class HostGraph(cudnn.pygraph):
    """A graph of one node, on its way from its description to its run."""

    stage = "described"

    @property
    def function(self):
        (node,) = self.nodes
        return node.node_type.name.lower()

    @property
    def notes(self):
        """The numerical notes that no engine may have."""
        return {note.name for kind, note, keep in self._note_filters if kind == "numerical" and not keep}

    def advance(self, before, after):
        assert self.stage == before
        self.stage = after

    def validate(self):
        super().validate()
        self.advance("described", "validated")
        assert all(pad >= 0 for side in ("pre_padding", "post_padding") for pad in self.nodes[0].params[side])
        assert all(n > 0 for tensor in self.tensors.values() for n in tensor.dim)

    def build_operation_graph(self):
        self.advance("validated", "lowered")

    def create_execution_plans(self, modes):
        assert modes == [cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK]
        self.advance("lowered", "planned")

    def deselect_numeric_notes(self, notes):
        assert self.stage == "planned"  # before there are plans, there is nothing to take away from
        return super().deselect_numeric_notes(notes)

    def deselect_workspace_greater_than(self, limit):
        assert self.stage == "planned"
        return super().deselect_workspace_greater_than(limit)

    def check_support(self):
        self.advance("planned", "supported")
        if self.function in self.library.refused:
            raise self.library.refused[self.function]

    def build_plans(self, policy):
        assert policy == cudnn.build_plan_policy.HEURISTICS_CHOICE
        self.advance("supported", "built")

    def get_workspace_size(self):
        return self._workspace_limit

    def execute(self, addresses, workspace, handle, override_uids):
        """What the graph says, of what is at the addresses; all of the workspace is written to."""
        library = self.library
        assert not override_uids
        assert self.stage == "built"
        assert handle.thread == threading.get_ident()
        assert handle._ordinal == library.standin.entered[-1].id
        assert handle.stream == library.stream
        ctypes.memset(workspace, 0xA5, self._workspace_limit)
        (node,) = self.nodes
        wide = DTYPES[node.compute_data_type.name]
        operands = {name: at(tensor, addresses[tensor]) for name, tensor in node.inputs.items()}
        (result,) = node.outputs.values()
        out = at(result, addresses[result])
        run = RUNS[self.function]
        out[...] = run(Window(node.params), out.shape, **{name: a.astype(wide) for name, a in operands.items()})
        library.runs.append(SimpleNamespace(function=self.function, graph=self, addresses=list(addresses.values())))


def at(tensor, address):
    """The memory that a tensor describes."""
    assert type(address) is int
    assert address % 16 == 0
    assert not tensor.is_virtual
    assert len(tensor.dim) in {4, 5}  # cuDNN has images and volumes
    dtype = np.dtype(DTYPES[tensor.data_type.name])
    order = sorted(range(len(tensor.dim)), key=lambda axis: (-tensor.stride[axis], -tensor.dim[axis]))
    steps = [math.prod(tensor.dim[axis] for axis in order[i + 1 :]) for i in range(len(order))]
    assert [tensor.stride[axis] for axis in order] == steps  # cuDNN takes filters with no gap, and so do we images
    memory = (ctypes.c_ubyte * (math.prod(tensor.dim) * dtype.itemsize)).from_address(address)
    strides = [step * dtype.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(np.frombuffer(memory, dtype), tensor.dim, strides)


class Window:
    """Which elements of a padded image each tap of a filter sees."""

    def __init__(self, params):
        self.before, self.behind = params["pre_padding"], params["post_padding"]
        self.stride, self.dilation = params["stride"], params["dilation"]

    def padded(self, shape):
        return (*shape[:2], *(sum(each) for each in zip(shape[2:], self.before, self.behind, strict=True)))

    def inside(self, shape):
        return (..., *(slice(pad, pad + n) for pad, n in zip(self.before, shape[2:], strict=True)))

    def taps(self, padded, kernel, out):
        expected = [
            (size - (k - 1) * d - 1) // s + 1
            for size, k, d, s in zip(padded[2:], kernel, self.dilation, self.stride, strict=True)
        ]
        assert list(out) == expected  # cuDNN infers it, and compares
        for tap in product(*map(range, kernel)):
            starts = [t * d for t, d in zip(tap, self.dilation, strict=True)]
            spans = zip(starts, out, self.stride, strict=True)
            yield (..., *tap), (..., *(slice(start, start + (n - 1) * step + 1, step) for start, n, step in spans))


def grouped(a, groups):
    return a.reshape(a.shape[0], groups, -1, *a.shape[2:])


def conv_fprop(window, shape, *, image, weight):
    groups = image.shape[1] // weight.shape[1]
    padded = np.zeros(window.padded(image.shape), image.dtype)
    padded[window.inside(image.shape)] = image
    y = np.zeros(shape, image.dtype)
    for tap, seen in window.taps(padded.shape, weight.shape[2:], shape[2:]):
        filters = weight[tap].reshape(groups, -1, weight.shape[1])
        y += np.einsum("ngc...,goc->ngo...", grouped(padded[seen], groups), filters).reshape(shape)
    return y


def conv_dgrad(window, shape, *, loss, filter):  # noqa: A002  (cuDNN's name)
    groups = shape[1] // filter.shape[1]
    padded = np.zeros(window.padded(shape), loss.dtype)
    for tap, seen in window.taps(padded.shape, filter.shape[2:], loss.shape[2:]):
        filters = filter[tap].reshape(groups, -1, filter.shape[1])
        part = np.einsum("ngo...,goc->ngc...", grouped(loss, groups), filters)
        padded[seen] += part.reshape(*shape[:2], *loss.shape[2:])
    return padded[window.inside(shape)]


def conv_wgrad(window, shape, *, image, loss):
    groups = image.shape[1] // shape[1]
    padded = np.zeros(window.padded(image.shape), image.dtype)
    padded[window.inside(image.shape)] = image
    dw = np.zeros(shape, image.dtype)
    for tap, seen in window.taps(padded.shape, shape[2:], loss.shape[2:]):
        left, right = (
            grouped(a, groups).reshape(len(a), groups, a.shape[1] // groups, -1) for a in (loss, padded[seen])
        )
        dw[tap] = np.einsum("ngop,ngcp->goc", left, right).reshape(shape[:2])
    return dw


RUNS = {run.__name__: run for run in (conv_fprop, conv_dgrad, conv_wgrad)}
