"""cuDNN as an algorithm: graphs of NVIDIA's real frontend, run on the memory of the host."""

import math
import sys
import threading
from collections import Counter

import cupy
import numpy as np
import pytest
from oracle import Oracle

import xconv
from kernels import standin
from kernels.dnn import HostDnn, cudnn
from kernels.standin import Meter, StandIn, device, host
from xconv import _planner
from xconv._axis import Axis
from xconv._geometry import Geometry
from xconv._ranking import plans
from xconv.backends.cupy import CupyBackend, _backend, _cudnn, _graphs
from xconv.backends.cupy._costs import KernelCosts

ALWAYS = {"NONDETERMINISTIC", "DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION", "FFT", "WINOGRAD"}
LAYER = (2, 4, 9, 8), (6, 4, 3, 3), {"padding": 1}
VERBS = ("conv_fprop", "conv_dgrad", "conv_wgrad")


@pytest.fixture
def dnn():
    with StandIn().installed() as host_device, HostDnn(host_device).installed() as dnn:
        yield dnn


@pytest.fixture
def first(monkeypatch):
    """`auto` takes cuDNN before all others, in small convolutions, too."""
    monkeypatch.setattr(KernelCosts, "cudnn", lambda *_: 0.0)


def numbers(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(dtype)


def arrays(x_shape, w_shape, options, dtype="float32"):
    """x, w and dy on the host, and what the three functions make of them by their definition."""
    known = {name: options[name] for name in ("stride", "padding", "dilation", "groups") if name in options}
    oracle = Oracle(x_shape, w_shape, **known)
    x, w, dy = (numbers(shape, dtype, seed) for seed, shape in enumerate((x_shape, w_shape, oracle.y_shape)))
    return (x, w, dy), (oracle.conv(x, w), oracle.input_grad(dy, w), oracle.weight_grad(dy, x))


def functions(x, w, dy, **options):
    options = {"algorithm": "cudnn", **options}
    return (
        lambda: xconv.conv(x, w, **options),
        lambda: xconv.conv_input_grad(dy, w, x.shape, **options),
        lambda: xconv.conv_weight_grad(dy, x, w.shape, **options),
    )


def same(found, expected, dtype="float32"):
    assert type(found) is cupy.ndarray
    assert found.dtype == dtype
    assert np.array_equal(host(found), expected.astype(dtype))


def drawn(rng):
    """Shapes and options of any convolution that cuDNN has, negative padding and strides with gaps included."""
    rank = int(rng.integers(1, 4))
    kernel, stride, dilation = ([int(n) for n in rng.integers(1, 4, rank)] for _ in range(3))
    padding, size = [], []
    for k, d in zip(kernel, dilation, strict=True):
        lo, hi = (int(n) for n in rng.integers(-1, 4, 2))
        size.append(max(1, (k - 1) * d + 1 - lo - hi) + int(rng.integers(0, 6 - rank)))
        padding.append((lo, hi))
    groups = int(rng.choice([1, 1, 2, 3]))
    c_in, c_out = (groups * int(n) for n in rng.integers(1, 4, 2))
    options = {"stride": tuple(stride), "dilation": tuple(dilation), "padding": tuple(padding), "groups": groups}
    return (int(rng.integers(1, 4)), c_in, *size), (c_out, c_in // groups, *kernel), options


def placed(rng, values):
    """The values in memory of some order, with gaps or without, from some address on."""
    order = rng.permutation(values.ndim) if rng.random() < 0.3 else np.arange(values.ndim)
    steps = rng.choice([1, 1, 1, 1, 2, -1, -2], values.ndim) if rng.random() < 0.4 else np.ones(values.ndim, int)
    first = int(rng.integers(0, 2))
    whole = [n * abs(step) for n, step in zip(values.shape, steps, strict=True)]
    flat = device(np.zeros(math.prod(whole) + first, values.dtype))[first:]
    block = flat.reshape([whole[axis] for axis in order]).transpose(np.argsort(order))
    a = block[tuple(slice(None, None, int(step)) for step in steps)]
    host(a)[...] = values
    return a


@pytest.mark.parametrize("seed", range(120))
def test_any_geometry(dnn, seed):
    """In any memory order, dtype, layout and workspace: small integers, bit for bit."""
    rng = np.random.default_rng(seed)
    x_shape, w_shape, options = next(found for found in iter(lambda: drawn(rng), None) if serves(*found))
    dtype = ("float32", "float64", "float16", "bfloat16")[seed % 4]
    host_arrays, expected = arrays(x_shape, w_shape, options, dtype)
    last = bool(rng.integers(2))
    options["layout"] = "channels_last" if last else "channels_first"
    x, w, dy = host_arrays
    moved = (np.moveaxis(a, 1, -1) if last else a for a in (x, dy))
    x, dy = (placed(rng, np.ascontiguousarray(a)) for a in moved)
    tiled = bool(rng.integers(2))
    for verb, function, value in zip(VERBS, functions(x, placed(rng, w), dy, **options), expected, strict=True):
        with xconv.config(workspace=int(least(function) * rng.uniform(1, 3)) if tiled else None):
            found = function()
        same(cupy.moveaxis(found, -1, 1) if last and verb != "conv_wgrad" else found, value, dtype)
        reflected = verb == "conv_dgrad" and max(options["stride"]) == 1
        assert set(dnn.functions) in (set(), {verb}, {"conv_fprop"} if reflected else {verb})
        assert tiled or len(dnn.runs) <= 1
        dnn.runs.clear()


def serves(x_shape, w_shape, options):
    g = xconv.plan(np.zeros(x_shape), np.zeros(w_shape), **options).schedule.geometry
    return CupyBackend.algorithms["cudnn"].refusal(g, "real") is None


def least(function):
    with pytest.raises(ValueError, match="at least") as caught, xconv.config(workspace=1):
        function()
    return int(str(caught.value).split("at least ")[1].split()[0])


# What cuDNN is asked for.


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrays_are_taken_as_they_lie(dnn, dtype, layout):
    """Operands and result are the caller's memory, unless they begin in the middle of what is loaded at once."""
    (x, w, dy), _ = arrays(*LAYER, dtype)
    order = (0, 2, 3, 1) if layout == "channels_last" else (0, 1, 2, 3)
    x, w, dy = (device(np.ascontiguousarray(a.transpose(order))) for a in (x, w, dy))
    if layout == "channels_last":
        w = w.transpose(0, 3, 1, 2)
    y = xconv.conv(x, w, padding=1, layout=layout, algorithm="cudnn")
    assert dnn.runs[-1].addresses == [x.data.ptr, w.data.ptr, y.data.ptr]
    dx = xconv.conv_input_grad(dy, w, x.shape, padding=1, layout=layout, algorithm="cudnn")
    assert dnn.runs[-1].addresses == [dy.data.ptr, w.data.ptr, dx.data.ptr]
    shifted = device(np.zeros(1 + x.size, dtype))[1:].reshape(x.shape)
    host(shifted)[...] = host(x)
    same(xconv.conv(shifted, w, padding=1, layout=layout, algorithm="cudnn"), host(y), dtype)
    assert shifted.data.ptr not in dnn.runs[-1].addresses


def test_a_plan_counts_what_cudnn_reads_and_multiplies(dnn):
    (x, w, dy), _ = arrays(*LAYER)
    p = xconv.plan(*map(device, (x, w)), padding=1, algorithm="cudnn")
    assert p.flops == p.weight_grad.flops == 2 * dy.size * w[0].size
    assert p.bytes_moved == 4 * (x.size + w.size + dy.size)


def kinds(run):
    """The dtypes of the operands and of the result, and the one that is computed in."""
    (node,) = run.graph.nodes
    tensors = (*node.inputs.values(), *node.outputs.values())
    return frozenset(tensor.data_type.name for tensor in tensors), node.compute_data_type.name


@pytest.mark.parametrize(
    ("dtype", "precision", "allowed"),
    [
        ("float32", "ieee", set()),
        ("float32", "tf32", {"TENSOR_CORE"}),
        ("float64", "ieee", {"TENSOR_CORE"}),
        ("float64", "tf32", {"TENSOR_CORE"}),
        ("float16", "ieee", {"TENSOR_CORE"}),
        ("bfloat16", "tf32", {"TENSOR_CORE"}),
    ],
)
def test_arithmetic(dnn, dtype, precision, allowed):
    """Never what rounds more than the plain sum or depends on the run; tensor cores for all but float32."""
    inputs, _ = arrays(*LAYER, dtype)
    for function in functions(*map(device, inputs), padding=1):
        with xconv.config(precision=precision):
            function()
    assert all(graph.notes >= ALWAYS for graph in dnn.graphs)
    assert all({"TENSOR_CORE"} - graph.notes == allowed for graph in dnn.graphs)
    narrow = {"float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT", "float64": "DOUBLE"}[dtype]
    wide = "DOUBLE" if dtype == "float64" else "FLOAT"
    assert [kinds(run) for run in dnn.runs] == 3 * [({narrow}, wide)]


def test_halves_are_rounded_once(dnn):
    """1 + 2^-11 + 2^-11 is rounded to a half only after the bias, the padding and all tiles have been added."""
    small = 2.0**-11
    x, w = device(np.full((1, 1, 1, 1), small, "float16")), device(np.ones((1, 1, 1, 1), "float16"))
    b = device(np.ones(1, "float16"))
    assert host(xconv.conv(x, w, b, algorithm="cudnn")) == 1  # a tie, which goes to the even one
    x = device(np.full((1, 2, 1, 1), small, "float16") + np.asarray([[[[0]], [[small / 4]]]], "float16"))
    w = device(np.ones((1, 2, 1, 1), "float16"))
    y = xconv.conv(x, w, b, algorithm="cudnn")
    assert host(y) == 1 + 2.0**-10
    # Each of the images adds 1 / 1024 to 1, of which a half would forget every one.
    x = device(np.full((9, 1, 1, 1), small / 2, "float16"))
    host(x)[0] = 1
    dy = device(np.ones((9, 1, 1, 1), "float16"))
    dw = functions(x, device(np.ones((1, 1, 1, 1), "float16")), dy)[2]
    with xconv.config(workspace=least(dw)):
        found = dw()
    assert len(dnn.runs) > 3
    assert {kinds(run) for run in dnn.runs} == {(frozenset({"FLOAT"}), "FLOAT")}
    assert host(found) == np.float16(1 + 8 * small / 2)


@pytest.mark.parametrize("options", [{"stride": 2, "padding": (1, 0)}, {"padding": 2, "pad_mode": "wrap"}], ids=str)
def test_a_weight_gradient_in_one_piece_is_of_halves(dnn, options):
    """cuDNN rounds its sum; where some of the input is not read, or padding comes from the array, it does too."""
    x, w = (numbers(shape, "float16", seed) for seed, shape in enumerate(((2, 3, 8, 7), (4, 3, 3, 3))))
    dy = numbers(xconv.plan(x, w, **options).y_shape, "float16")
    expected = xconv.conv_weight_grad(dy, x, w.shape, **options)
    same(functions(*map(device, (x, w, dy)), **options)[2](), expected, "float16")
    assert [kinds(run) for run in dnn.runs] == [({"HALF"}, "FLOAT")]


def test_tf32_holds_halves(dnn):
    """Where float32 is wanted of halves, its products may be those of TF32; and not if the halves were converted."""
    x, w, b = (device(numbers(shape, "float16")) for shape in ((1, 2, 5, 5), (3, 2, 3, 3), (3,)))
    xconv.conv(x, w, b, algorithm="cudnn")
    assert kinds(dnn.runs[-1]) == ({"FLOAT"}, "FLOAT")
    assert "TENSOR_CORE" not in dnn.graphs[-1].notes
    xconv.conv(x, w, b, dtype=cupy.float32, algorithm="cudnn")
    assert "TENSOR_CORE" in dnn.graphs[-1].notes


def test_padding_is_even_where_that_changes_nothing(dnn):
    """The last window of a stride leaves room behind it, in which cuDNN is told of as much padding as before."""
    x, w = device(numbers((1, 3, 16, 16))), device(numbers((2, 3, 7, 7)))
    xconv.conv(x, w, stride=2, padding=3, algorithm="cudnn")
    (node,) = dnn.graphs[-1].nodes
    assert (node.params["pre_padding"], node.params["post_padding"]) == ([3, 3], [3, 3])
    xconv.conv(x, w, stride=1, padding=((1, 2), (2, 1)), algorithm="cudnn")
    (node,) = dnn.graphs[-1].nodes
    assert (node.params["pre_padding"], node.params["post_padding"]) == ([1, 2], [2, 1])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_the_workspace_is_a_bound(dnn, monkeypatch, dtype, layout):
    """On cuDNN's own share and on the whole, with operands that must be copied and cuDNN taking all that it may."""
    rng = np.random.default_rng(0)
    options = {"padding": (1, -1), "stride": (2, 1)}
    (x, w, dy), _ = arrays((4, 6, 20, 18), (8, 6, 3, 3), options, dtype)
    if layout == "channels_last":
        x, dy = (np.moveaxis(a, 1, -1) for a in (x, dy))
    x, w, dy = (device(np.repeat(a, 2, -1))[..., ::2] for a in (x, w, dy))
    for function in functions(x, w, dy, layout=layout, **options):
        workspace = int(least(function) * rng.uniform(1, 4))
        meter = Meter()
        monkeypatch.setattr(standin, "allocate", meter.allocate)
        with xconv.config(workspace=workspace):
            result = function()
        assert meter.most <= result.nbytes + workspace
        assert len(dnn.runs) > 1
        assert all(graph._workspace_limit <= workspace for graph in dnn.graphs)
        dnn.runs.clear()
        dnn.graphs.clear()


# Handles, threads, streams and devices.


def test_a_graph_is_built_once(dnn):
    inputs, _ = arrays(*LAYER)
    x, w, dy = map(device, inputs)
    for _ in range(3):
        for function in functions(x, w, dy, padding=1):
            function()
    assert [graph.function for graph in dnn.graphs] == list(VERBS)
    assert len(dnn.runs) == 9
    assert len(dnn.handles) == 1


def test_a_call_is_a_program(dnn, monkeypatch):
    """On the memory of each call, and with the graph at hand: to hash the geometry takes longer than all else."""
    (x, w, _), (y, _, _) = arrays(*LAYER)
    plan = xconv.plan(device(x), device(w), padding=1, algorithm="cudnn")
    for _ in range(3):
        plan.conv(device(x), device(w))
    (program,) = plan.schedule.predicted("forward").remembered.values()
    assert Counter(type(step) for step, _ in program.steps)[_graphs.Convolution] == 1
    monkeypatch.setattr(Geometry, "__hash__", None)
    operands = device(2 * x), device(w)
    same(plan.conv(*operands), 2 * y)
    assert dnn.runs[-1].addresses[:2] == [a.data.ptr for a in operands]
    assert len(dnn.graphs) == 1


def test_a_program_of_another_thread(dnn, first):
    """Has a graph of the thread that runs it, and goes to the next best plan where that is refused."""
    (x, w, _), (y, _, _) = arrays(*LAYER)
    plan = xconv.plan(device(x), device(w), padding=1)
    plan.conv(device(x), device(w))
    found = []
    for error in (None, cudnn.cudnnGraphNotSupportedError("no engine")):
        dnn.refused |= {"conv_fprop": error} if error else {}
        thread = threading.Thread(target=lambda: found.append(plan.conv(device(x), device(w))))
        thread.start()
        thread.join()
        same(found.pop(), y)
    assert dnn.functions == 2 * ["conv_fprop"]
    assert len(dnn.graphs) == len(dnn.handles) == 3


def test_each_thread_has_its_own(dnn):
    x, w = device(numbers((1, 2, 5, 5))), device(numbers((3, 2, 3, 3)))
    expected = host(xconv.conv(x, w, algorithm="gemm"))
    found = []
    threads = [threading.Thread(target=lambda: found.append(xconv.conv(x, w, algorithm="cudnn"))) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    for y in found:
        same(y, expected)
    assert len(dnn.handles) == len(dnn.graphs) == len(found) == 3


def test_the_device_and_the_stream(dnn):
    """The handle is of the arrays' device, and is told the current stream before each run (the stand-in looks)."""
    for place in (*dnn.standin.devices, *dnn.standin.devices):
        with place:
            x, w = device(numbers((1, 2, 5, 5))), device(numbers((3, 2, 3, 3)))
        dnn.stream += 1
        assert xconv.conv(x, w, algorithm="cudnn").device is place
    assert [handle._ordinal for handle in dnn.handles] == [0, 1]
    assert len(dnn.graphs) == 2


# What it does not serve.


def test_without_the_extra(dnn, monkeypatch):
    x, w = device(numbers((1, 2, 5, 5))), device(numbers((3, 2, 3, 3)))
    monkeypatch.setattr(_cudnn, "find_spec", lambda name: None)
    _planner.scheduled.cache_clear()
    with pytest.raises(ValueError, match=r"^`algorithm` 'cudnn' cannot serve .*: it needs the extra `xconv\[cudnn\]`"):
        xconv.conv(x, w, algorithm="cudnn")
    assert xconv.plan(x, w).algorithm == "gemm"
    _planner.scheduled.cache_clear()


def without_frontend(monkeypatch):
    monkeypatch.setitem(sys.modules, "xconv.backends.cupy._graphs", None)
    monkeypatch.delattr("xconv.backends.cupy._graphs")


def test_a_frontend_that_cannot_be_imported(dnn, monkeypatch):
    x, w = device(numbers((1, 2, 5, 5))), device(numbers((3, 2, 3, 3)))
    without_frontend(monkeypatch)
    with pytest.raises(ValueError, match=r"^`algorithm` 'cudnn' cannot serve .*: its frontend cannot be imported"):
        xconv.conv(x, w, algorithm="cudnn")


@pytest.mark.parametrize(
    ("shapes", "dtype", "reason"),
    [
        (((1, 1, 4), (1, 1, 3)), "int32", "it takes real floating-point numbers, and these are integer"),
        (((1, 1, 4), (1, 1, 3)), "complex64", "it takes real floating-point numbers, and these are complex"),
        (((1, 1, 4, 4, 4, 4), (1, 1, 3, 3, 3, 3)), "float32", "it takes three spatial axes at most"),
        (((1, 1, 0), (1, 1, 1), ((0, 1),)), "float32", "there is nothing in `x` but its padding"),
        (((1, 1, 1), (1, 1, 1), ((-1, 2),)), "float32", "there is nothing in `x` but its padding"),
    ],
)
def test_what_is_refused_beforehand(dnn, shapes, dtype, reason):
    x_shape, w_shape, *padding = shapes
    x, w, options = device(numbers(x_shape, dtype)), device(numbers(w_shape, dtype)), {"padding": (*padding, 0)[0]}
    with pytest.raises(ValueError, match=f"^`algorithm` 'cudnn' cannot serve this convolution: {reason}"):
        xconv.conv(x, w, **options, algorithm="cudnn")
    xconv.conv(x, w, **options)
    assert not dnn.graphs


def test_more_elements_than_32_bits_count():
    cudnn_ = CupyBackend.algorithms["cudnn"]
    for length, words in ((2**31 - 1, None), (2**31, "it counts elements in 32 bits, and there are more")):
        assert cudnn_.refusal(Geometry(1, 1, 1, 1, (Axis(length, 3),)), "real") == words


def test_empty_arrays(dnn):
    """Need no cuDNN; nor do windows that see nothing but padding."""
    for n, c, f in ((0, 2, 3), (2, 0, 3), (2, 2, 0)):
        x, w = device(numbers((n, c, 4, 4))), device(numbers((f, c, 3, 3)))
        y = xconv.conv(x, w, algorithm="cudnn")
        same(y, np.zeros((n, f, 2, 2)))
        for function, shape in zip(functions(x, w, y)[1:], (x.shape, w.shape), strict=True):
            same(function(), np.zeros(shape))
    assert not dnn.runs


@pytest.mark.parametrize("error", [cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError])
def test_asked_for_by_name_and_refused(dnn, monkeypatch, error):
    x, w = device(numbers((1, 2, 5, 5))), device(numbers((3, 2, 3, 3)))
    dnn.refused["conv_fprop"] = error("no engine has it")
    monkeypatch.setattr(standin, "allocate", None)  # it is refused before memory is asked for
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^`algorithm` 'cudnn' cannot .*: cuDNN says no engine has it$"):
            xconv.conv(x, w, algorithm="cudnn")
    assert len(dnn.graphs) == 1  # it is not asked twice
    assert not dnn.runs


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("workspace", [None, 60_000])
def test_auto_falls_back_to_ours(dnn, first, verb, workspace):
    """In the function that cuDNN refuses, and in no other."""
    inputs, expected = arrays(*LAYER)
    dnn.refused[verb] = cudnn.cudnnGraphNotSupportedError("no engine")
    with xconv.config(workspace=workspace):
        plan = xconv.plan(*map(device, inputs[:2]), padding=1)
        for name in ("forward", "input_grad", "weight_grad"):
            every = list(plans(plan.schedule.problem, name))
            cheapest, *others = [one.name for one in every if one.name != "cudnn, reflected"]
            assert (cheapest, getattr(plan, name).algorithm) == ("cudnn", "cudnn")
            assert others[0] in {"gemm", "gemm, reflected"}
            assert all(one.workspace <= (workspace or math.inf) for one in every)
        for function, value in zip(functions(*map(device, inputs), padding=1, algorithm="auto"), expected, strict=True):
            same(function(), value)
    assert set(dnn.functions) == set(VERBS) - {verb}


@pytest.mark.parametrize("missing", ["engine", "frontend"])
def test_what_was_refused_has_given_back_its_memory(dnn, first, monkeypatch, missing):
    """Before the next plan takes its own: the error is kept, and the arrays of the call are not."""
    monkeypatch.setattr(_backend, "PROGRAMMED", set())  # programs are refused when they are written
    (x, w, _), (y, _, _) = arrays(*LAYER)
    if missing == "engine":
        dnn.refused["conv_fprop"] = cudnn.cudnnGraphNotSupportedError  # a new one, or it would keep what raised it
    else:
        without_frontend(monkeypatch)
    x, w, most = device(x), device(w), []
    for algorithm in ("auto", "gemm"):
        meter = Meter()
        monkeypatch.setattr(standin, "allocate", meter.allocate)
        same(xconv.conv(x, w, padding=1, algorithm=algorithm), y)
        most.append(meter.most)
    assert most[0] == most[1]


def test_a_workspace_without_room_for_it(dnn):
    x, w = device(numbers((1, 2, 5, 5))), device(numbers((3, 2, 3, 3)))
    known = {name: least(lambda name=name: xconv.conv(x, w, algorithm=name)) for name in ("cudnn", "gemm")}
    assert known["gemm"] < known["cudnn"]
    with xconv.config(workspace=known["gemm"]):
        assert xconv.plan(x, w).algorithm == "gemm"


@pytest.mark.parametrize(
    ("refused", "done_by"),
    [((), ["conv_dgrad"]), (("conv_dgrad",), ["conv_fprop"]), (("conv_dgrad", "conv_fprop"), [])],
)
def test_it_has_an_input_gradient_of_its_own(dnn, first, refused, done_by):
    """Before a convolution with reflected filters, which is the next best for it; ours come after both."""
    (x, w, dy), (_, dx, _) = arrays(*LAYER)
    dnn.refused |= dict.fromkeys(refused, cudnn.cudnnGraphNotSupportedError("no engine"))
    plan = xconv.plan(device(x), device(w), padding=1)
    names = [one.name for one in plans(plan.schedule.problem, "input_grad")]
    assert names[:2] == ["cudnn", "cudnn, reflected"]
    assert names[2] in {"gemm", "gemm, reflected"}
    for _ in range(3):
        same(plan.input_grad(device(dy), device(w)), dx)
    assert dnn.functions == 3 * done_by
    assert len(dnn.graphs) == 1 + bool(refused)  # it is not asked twice


def test_negative_padding_of_operands(dnn):
    """Tiles have cut it off; it would be cut off here, too."""
    g = Geometry(2, 3, 4, 1, (Axis(8, 3, 1, 1, -2, 1), Axis(9, 2, 1, 1, 1, -3)))
    oracle = Oracle(g.x_shape, g.w_shape, padding=((-2, 1), (1, -3)))
    x, w, dy = (numbers(shape, seed=seed) for seed, shape in enumerate((g.x_shape, g.w_shape, g.y_shape)))
    backend, algorithm = CupyBackend(), CupyBackend.algorithms["cudnn"]
    same(algorithm.forward(backend, g, device(x), device(w), None), oracle.conv(x, w))
    same(algorithm.weight_grad(backend, g, device(dy), device(x)), oracle.weight_grad(dy, x))


@pytest.mark.filterwarnings("ignore:.*meta")
def test_chunks_of_dask(dnn):
    """Each task asks the library of its chunks."""
    dask_array = pytest.importorskip("dask.array")
    (x, w, _), (y, _, _) = arrays(*LAYER)
    x_, w_ = (dask_array.from_array(device(a), chunks=c, asarray=False) for a, c in ((x, (1, 4, 9, 8)), (w, -1)))
    found = xconv.conv(x_, w_, padding=1, algorithm="cudnn")
    for i, chunk in enumerate(found.to_delayed().ravel()):
        same(chunk.compute(scheduler="synchronous"), y[i : i + 1])
    assert dnn.functions == ["conv_fprop"] * 2


def test_the_names_are_the_frontends():
    """Those of notes, dtypes and modes; the stand-in has all others from the frontend itself."""
    assert {name for name in _graphs.UNWANTED if name in cudnn.numerical_note.__members__} == set(_graphs.UNWANTED)
    used = {name for pair in _graphs.TYPES.values() for name in pair}
    assert used <= set(cudnn.data_type.__members__)
