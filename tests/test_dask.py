"""Dask: the same numbers, lazily, with no task and no byte beyond what the halos need."""

import gc
import math
import os
import pickle
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import refuse
from oracle import Oracle
from strategies import cases

import xconv
from xconv import _planner
from xconv._arguments import geometry
from xconv._geometry import Geometry
from xconv.backends import Backend

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

pytestmark = [
    pytest.mark.numpy_only,
    pytest.mark.filterwarnings("default:.*sum of squares.*"),
]


@pytest.fixture(autouse=True)
def _one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def never():
    """Dask refuses to compute anything while this is entered."""

    return dask.config.set(scheduler=refuse)


@st.composite
def cut(draw, shape):
    """Chunks of any sizes, empty ones among them."""
    chunks = []
    for n in shape:
        inner = draw(st.lists(st.integers(0, n), max_size=4))
        chunks.append(tuple(b - a for a, b in pairwise([0, *sorted(inner), n])))
    return tuple(chunks)


def kinds(array):
    """How many tasks of each kind make this array, without those that make what it is made from."""
    layer = array.__dask_graph__().layers[array.name]
    counts = {}
    for key in layer:
        kind = "part" if key[0].startswith("xconv-part-") else key[0].removeprefix("xconv-").rpartition("-")[0]
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def moved(array):
    """Elements that are cut out of chunks for others."""
    tasks = array.__dask_graph__().layers[array.name].values()
    indices = [task.args[0] for task in tasks if task.key[0].startswith("xconv-part-")]
    return sum(math.prod(s.stop - s.start for s in index) for index in indices)


@pytest.mark.usefixtures("exact")
@settings(max_examples=150)
@given(case=cases(), data=st.data())
def test_any_geometry_in_any_chunks(never, case, data):
    oracle = Oracle(case.x_shape, case.w_shape, **case.options)
    x, w, dy = case.integers(case.x_shape, case.w_shape, oracle.y_shape)
    options = {**case.options, "layout": case.layout}
    x_, w_, dy_ = (da.from_array(a, chunks=data.draw(cut(a.shape))) for a in (case.in_layout(x), w, case.in_layout(dy)))
    with never:
        results = (
            xconv.conv(x_, w_, **options),
            xconv.conv_input_grad(dy_, w_, case.shape_in_layout(case.x_shape), **options),
            xconv.conv_weight_grad(dy_, x_, case.w_shape, **options),
        )
    expected = (
        case.in_layout(oracle.conv(x, w)),
        case.in_layout(oracle.input_grad(dy, w)),
        oracle.weight_grad(dy, x),
    )
    for result, values in zip(results, expected, strict=True):
        assert isinstance(result, da.Array)
        assert result.shape == values.shape
        computed = result.compute()
        assert type(computed) is np.ndarray
        assert computed.dtype == result.dtype == np.float64
        assert np.array_equal(computed, values)


@settings(max_examples=60)
@given(case=cases(), data=st.data())
def test_windows_in_any_chunks(case, data):
    options = {name: case.options[name] for name in ("stride", "padding", "dilation", "pad_mode", "pad_value")}
    (x,) = case.integers(case.x_shape)
    kernel = case.w_shape[2:]
    options["axes"] = data.draw(st.none() | st.permutations(range(2 * x.ndim - 2)))
    cols = xconv.im2col(x, kernel, **options)
    found = xconv.im2col(da.from_array(x, chunks=data.draw(cut(x.shape))), kernel, **options)
    assert np.array_equal(found.compute(), cols)
    del options["pad_mode"], options["pad_value"]
    lazy = da.from_array(cols, chunks=data.draw(cut(cols.shape)))
    found = xconv.col2im(lazy, case.x_shape[2:], **options)
    assert np.array_equal(found.compute(), xconv.col2im(cols, case.x_shape[2:], **options))


@settings(max_examples=60)
@given(case=cases(), data=st.data(), count_include_pad=st.booleans())
def test_pooling_in_any_chunks(never, case, data, count_include_pad):
    """The numbers that NumPy's arrays give, in every bit."""
    shape = (case.x_shape[0], 2, *case.x_shape[2:])
    options = {name: case.options[name] for name in ("stride", "padding", "dilation")} | {"layout": case.layout}
    x = np.random.default_rng(case.seed).choice([0.1, 0.3, 7.0, -np.inf], shape)
    x, kernel = case.in_layout(x), case.w_shape[2:]
    y = xconv.max_pool(x, kernel, **options)
    dy = np.random.default_rng(case.seed).standard_normal(y.shape)
    x_, dy_ = (da.from_array(a, chunks=data.draw(cut(a.shape))) for a in (x, dy))
    calls = [
        (lambda dy, x: xconv.max_pool(x, kernel, **options)),
        (lambda dy, x: xconv.max_pool_grad(dy, x, kernel, **options)),
    ]
    options_of_mean = {**options, "count_include_pad": count_include_pad}
    sizes = {name: options[name] for name in ("stride", "padding", "dilation")}
    if count_include_pad or not geometry(shape, (2, 2, *kernel), **sizes).is_blind:
        calls.append(lambda dy, x: xconv.avg_pool(x, kernel, **options_of_mean))
        calls.append(lambda dy, x: xconv.avg_pool_grad(dy, x.shape, kernel, **options_of_mean))
    for call in calls:
        with never:
            lazy = call(dy_, x_)
        assert isinstance(lazy, da.Array)
        with np.errstate(invalid="ignore"):  # the BLAS may multiply infinity by zeros of its own
            computed, expected = lazy.compute(scheduler="sync"), call(dy, x)
        assert computed.dtype == lazy.dtype == np.float64
        np.testing.assert_array_equal(computed, expected)


def test_pooling_moves_no_more_than_halos():
    x = da.zeros((1, 2, 400, 400), chunks=(1, 2, 100, 100))
    y = xconv.max_pool(x, 3, stride=2, padding=1)
    assert y.chunks == ((1,), (2,), (50,) * 4, (50,) * 4)
    assert moved(y) == 2 * (2 * 3 * 400 + 9)
    dx = xconv.max_pool_grad(y, x, 3, stride=2, padding=1)
    assert dx.chunks == x.chunks
    assert max(kinds(dx).values()) <= 9 * 16
    assert moved(xconv.avg_pool_grad(y, x.shape, 3, stride=2, padding=1)) < 2 * 2 * 3 * 200 + 100


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_transposed(rng, layout):
    x, w, b = rng.standard_normal((2, 4, 9, 7)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(6)
    options = {"stride": 2, "padding": 1, "output_padding": (1, 0), "groups": 2, "layout": layout}
    if layout == "channels_last":
        x = np.moveaxis(x, 1, -1)
    lazy = xconv.conv_transpose(*(da.from_array(a, chunks=3) for a in (x, w, b)), **options)
    assert np.allclose(lazy.compute(), xconv.conv_transpose(x, w, b, **options), rtol=0, atol=1e-12)


def test_complex_and_half(rng):
    x, w = (rng.standard_normal(s) + 1j * rng.standard_normal(s) for s in ((2, 3, 12), (4, 3, 5)))
    y = xconv.conv(x, w)
    lazy = [da.from_array(a, chunks=4) for a in (x, w, y)]
    dx = xconv.conv_input_grad(lazy[2], lazy[1], x.shape)
    assert np.allclose(dx.compute(), xconv.conv_input_grad(y, w, x.shape))
    dw = xconv.conv_weight_grad(lazy[2], lazy[0], w.shape)
    assert np.allclose(dw.compute(), xconv.conv_weight_grad(y, x, w.shape))
    # Sums over all chunks are rounded to float16 once, and so is what the padding adds to the input gradient.
    ones = da.from_array(np.ones((1, 1, 30 * 2049), np.float16), chunks=2049)
    dw = xconv.conv_weight_grad(ones, ones, (1, 1, 1))
    assert dw.dtype == np.float16
    assert dw.compute() == 61472  # 61470, rounded
    assert kinds(dw)["weight-grad-sum"] == 4
    dy = da.from_array(np.ones((1, 1, 4101), np.float16), chunks=64)
    dx = xconv.conv_input_grad(dy, np.ones((1, 1, 1), np.float16), (1, 1, 3), padding=2049, pad_mode="edge")
    assert dx.dtype == np.float16
    assert np.array_equal(dx.compute()[0, 0], [2050, 1, 2050])
    w = np.array([[[1, 2048]]], np.float16)
    dy = da.from_array(np.ones((1, 1, 3), np.float16), chunks=1)
    dx = xconv.conv_input_grad(dy, w, (1, 1, 2), padding=1, pad_mode="edge")
    assert np.array_equal(dx.compute()[0, 0], [2050, 4096])  # 2049 and 1; 2049 and 2048


def test_tasks_from_elsewhere_share_a_plan():
    """A NaN that was pickled is another one."""
    x, w = da.ones((1, 1, 8), chunks=4), np.ones((1, 1, 3))
    y = xconv.conv(x, w, padding=1, pad_value=math.nan)
    results, misses = [], []
    for _ in range(3):
        results.append(pickle.loads(pickle.dumps(y)).compute())
        misses.append(_planner._of_part.cache_info().misses)
    assert len(set(misses)) == 1
    assert all(np.array_equal(np.isnan(result[0, 0]), [True, *6 * [False], True]) for result in results)


def test_a_value_is_rounded_as_the_array_is():
    """Though partial sums are of a wider dtype, in which as many ones less and values more would not be zero."""
    x, dy = (da.ones((1, 1, n), dtype=np.float16, chunks=400) for n in (1000, 2000))
    dw = xconv.conv_weight_grad(dy, -x, (1, 1, 1), padding=500, pad_value=1 + 2**-12)
    assert dw.compute() == 0


def test_bias_integers_and_dtype(rng):
    x, w = rng.integers(-100, 100, (2, 3, 9, 9), dtype=np.int8), rng.integers(-100, 100, (4, 3, 3, 3), dtype=np.int8)
    b = rng.integers(-100, 100, 4, dtype=np.int8)
    y = xconv.conv(*(da.from_array(a, chunks=3) for a in (x, w, b)), dtype="int32", padding=1)
    assert y.dtype == np.int32
    assert np.array_equal(y.compute(), xconv.conv(x, w, b, dtype=np.int32, padding=1))


def test_the_classic_four(rng):
    X, W, b = rng.standard_normal((5, 2, 10, 10)), rng.standard_normal((4, 2, 3, 3)), rng.standard_normal((4, 1))
    lazy = [da.from_array(a, chunks=4) for a in (X, W, b)]
    out, cache = xconv.conv_forward(*lazy)
    expected, kept = xconv.conv_forward(X, W, b)
    assert np.allclose(out.compute(), expected)
    for found, right in zip(xconv.conv_backward(out, cache), xconv.conv_backward(expected, kept), strict=True):
        assert np.allclose(found.compute(), right)
    cols = xconv.im2col_indices(lazy[0], 3, 3)
    assert np.array_equal(cols.compute(), xconv.im2col_indices(X, 3, 3))
    assert np.allclose(xconv.col2im_indices(cols, X.shape).compute(), xconv.col2im_indices(cols.compute(), X.shape))


# what it costs


def test_images_by_themselves_need_no_halo():
    x, w = da.ones((12, 3, 20, 20), chunks=(2, 3, 20, 20)), da.ones((4, 3, 3, 3), chunks=-1)
    y = xconv.conv(x, w, padding=1, pad_mode="wrap")
    assert kinds(y) == {"conv": 6}
    assert y.chunks == ((2,) * 6, (4,), (20,), (20,))
    assert kinds(xconv.conv_input_grad(y, w, x.shape, padding=1)) == {"input-grad": 6}
    assert kinds(xconv.conv_input_grad(y, w, x.shape, padding=1, pad_mode="wrap")) == {"input-grad": 6}
    assert kinds(xconv.conv_weight_grad(y, x, w.shape, padding=1)) == {"weight-grad-partial": 6, "weight-grad": 1}


@pytest.mark.parametrize("padding", [2, 0])
def test_only_halos_travel(padding):
    """A chunk is read where it is, and 2 rows and columns of each of those around it are brought there."""
    x, w = da.ones((1, 2, 40, 60), chunks=(1, 2, 10, 10)), da.ones((3, 2, 5, 5), chunks=-1)
    y = xconv.conv(x, w, padding=padding)
    sides = 3 * 6 + 4 * 5
    corners = 3 * 5
    assert kinds(y) == {"conv": 24, "part": 2 * sides + 4 * corners}
    assert moved(y) == 2 * (2 * sides * 2 * 10 + 4 * corners * 2 * 2)
    if padding:
        assert y.chunks == ((1,), (3,), (10,) * 4, (10,) * 6)
        dx = xconv.conv_input_grad(y, w, x.shape, padding=2)
        assert dx.chunks == x.chunks
        assert moved(dx) == 3 * (2 * sides * 2 * 10 + 4 * corners * 2 * 2)
        dw = xconv.conv_weight_grad(y, x, w.shape, padding=2)
        assert moved(dw) == moved(y)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("padding", [((2, 0),), ((0, 2),), "same", "same_lower", ((3, 3),), 0, ((-1, 1),)], ids=str)
@pytest.mark.parametrize("function", [xconv.conv, xconv.conv_transpose])
def test_layers_make_no_more_chunks(rng, function, padding):
    """What a padding adds lies in the chunk beside it, and not in one of its own."""
    y = rng.integers(-2, 3, (2, 1, 120)).astype(float)
    lazy, w = da.from_array(y, chunks=(1, 1, (0, 40, 40, 40, 0))), np.ones((1, 1, 3))
    for _ in range(5):
        y, lazy = function(y, w, padding=padding), function(lazy, w, padding=padding)
        assert lazy.numblocks == (2, 1, 3)
    assert np.array_equal(lazy.compute(), y)


@pytest.mark.parametrize(
    "options", [{"padding": ((4, 0),)}, {"padding": ((0, 5),), "stride": 2}, {"stride": 3}], ids=str
)
def test_windows_lie_in_no_more_chunks(options):
    x = da.ones((1, 1, 120), chunks=(1, 1, 40))
    y, w = xconv.conv(x, np.ones((1, 1, 3)), **options), np.ones((1, 1, 3))
    assert xconv.conv_input_grad(y, w, x.shape, **options).numblocks == (1, 1, 3)
    assert kinds(xconv.conv_weight_grad(y, x, w.shape, **options))["weight-grad-partial"] == 3
    cols = xconv.im2col(x, 3, **options)
    assert cols.numblocks == (1, 1, 1, 3)
    assert xconv.col2im(cols, 120, **options).numblocks == (1, 1, 3)
    assert xconv.conv_transpose(x, w, **options).numblocks == (1, 1, 3)


def test_stride_without_overlap_needs_no_halo():
    x, w = da.ones((1, 1, 64), chunks=16), da.ones((1, 1, 4), chunks=-1)
    y = xconv.conv(x, w, stride=4)
    assert kinds(y) == {"conv": 4}
    assert kinds(xconv.conv_input_grad(y, w, x.shape, stride=4)) == {"input-grad": 4}


def test_padding_travels_as_what_it_reads():
    """ "wrap" brings two columns from the other end, and not the whole row."""
    x, w = da.ones((1, 1, 1000), chunks=100), da.ones((1, 1, 5), chunks=-1)
    y = xconv.conv(x, w, padding=2, pad_mode="wrap")
    assert moved(y) == 10 * 2 * 2
    assert kinds(y) == {"conv": 10, "part": 20}


def test_halos_are_shared():
    """What the weight gradient reads of an image is what the forward pass has read."""
    x, w = da.ones((1, 1, 100), chunks=10), da.ones((1, 1, 3), chunks=-1)
    y = xconv.conv(x, w, padding=1)
    dw = xconv.conv_weight_grad(da.ones_like(x), x, w.shape, padding=1)
    (merged,) = dask.optimize(dask.delayed([y, dw]))
    assert sum(str(key[0]).startswith("xconv-part-") for key in merged.__dask_graph__() if isinstance(key, tuple)) == 18


@pytest.mark.usefixtures("exact")
def test_sums_are_a_tree():
    x = da.ones((1, 1, 1000), chunks=10)
    dw = xconv.conv_weight_grad(x, x, (1, 1, 1))
    assert kinds(dw) == {"weight-grad-partial": 100, "weight-grad-sum": 13 + 2, "weight-grad": 1}
    assert dw.compute() == 1000


X, W = da.ones((2, 4, 28), dtype="float32", chunks=10), da.ones((4, 2, 3), dtype="float32", chunks=-1)
DY = da.ones((2, 4, 28), dtype="float32", chunks=7)
FUNCTIONS = {
    "conv": (xconv.conv, (X, W)),
    "input_grad": (lambda dy, w, **options: xconv.conv_input_grad(dy, w, X.shape, **options), (DY, W)),
    "weight_grad": (lambda dy, x, **options: xconv.conv_weight_grad(dy, x, W.shape, **options), (DY, X)),
    "transpose": (xconv.conv_transpose, (DY, W)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_names_tell_graphs_apart(name):
    """A name for each thing that a result depends on, and the same one for the same result."""
    function, (a, b) = FUNCTIONS[name]
    options = {"padding": 1, "groups": 2}
    names = [
        function(a, b, **options).name,
        function(2 * a, b, **options).name,
        function(a, 2 * b, **options).name,
        function(a, b, **options, dtype=np.float64).name,
        function(a, b, **options, algorithm="gemm").name,
        function(a.rechunk(9), b, **options).name,
    ]
    if name != "transpose":
        names.append(function(a, b, **options, pad_mode="edge").name)
    if name == "input_grad":
        assert function(a, b, **options, pad_value=1).name == names[0]
    elif name != "transpose":
        names += [function(a, b, **options, pad_value=value).name for value in (1, 2)]
    with xconv.config(numerics="strict"):
        names.append(function(a, b, **options).name)
    with xconv.config(workspace=2**24):
        names.append(function(a, b, **options).name)
    assert len(set(names)) == len(names)
    with xconv.config(threads=3):
        assert function(a, b, **options).name == names[0]


def test_names_of_windows_and_of_transposed_convolutions():
    x = da.ones((2, 3, 9, 9), chunks=4)
    w = da.ones((3, 2, 3, 3), chunks=-1)
    dy = xconv.conv_transpose(x, w)
    names = {
        xconv.conv_transpose(x, w).name,
        xconv.conv_transpose(x, w, da.ones(2)).name,
        xconv.conv_input_grad(x, w, dy.shape).name,
        xconv.im2col(x, 3).name,
        xconv.im2col(x, 3, padding=1).name,
        xconv.im2col(x, 2).name,
    }
    assert len(names) == 6


def test_building_is_linear():
    """In the number of chunks: 4 times as many take not much more than 4 times as long."""

    def calls(chunks):
        x, w = da.ones((chunks, 1, 8), chunks=(1, 1, 8)), np.ones((1, 1, 3))
        counted = 0

        def count(*_):
            nonlocal counted
            counted += 1

        sys.setprofile(count)
        try:
            xconv.conv_weight_grad(xconv.conv(x, w, padding=1), x, w.shape, padding=1)
        finally:
            sys.setprofile(None)
        return counted

    calls(10)
    assert calls(400) < 5 * calls(100)


@pytest.mark.parametrize("pad_mode", ["constant", "reflect"])
def test_building_goes_axis_by_axis(pad_mode, monkeypatch):
    """The geometry is cut as often as its axes are, and not for every chunk; equal chunks share what they run."""
    cut_out = []
    part = Geometry.part
    monkeypatch.setattr(Geometry, "part", lambda *given: cut_out.append(given) or part(*given))
    x, w = da.ones((1, 4, 80, 80), chunks=(1, 4, 4, 4)), np.ones((4, 4, 3, 3))
    options = {"padding": 1, "pad_mode": pad_mode}
    functions = (
        lambda: xconv.conv(x, w, **options),
        lambda: xconv.conv_input_grad(x, w, x.shape, **options),
        lambda: xconv.conv_weight_grad(x, x, w.shape, **options),
    )
    for function in functions:
        made = function()
        tasks = made.__dask_graph__().layers[made.name].values()
        runs = [task.args[0] for task in tasks if task.func.__name__ == "_computed"]
        assert len(runs) >= 400
        assert len(set(map(id, runs))) <= 50  # first, last and inner ones on both axes, and the borders
    assert len(cut_out) < 400


@pytest.mark.parametrize(("size", "chunk"), [(10**10, 10**9), (10**15, 10**14)])
@pytest.mark.parametrize("options", [{}, {"padding": 10**9, "pad_mode": "wrap"}, {"stride": 10**4}], ids=str)
def test_long_axes_in_few_chunks(never, size, chunk, options):
    """Graphs are as small as the chunks are few; what no memory holds at once need not be held at once."""
    x = da.zeros((1, 1, size), np.float32, chunks=(1, 1, chunk))
    w = da.zeros((1, 1, 10**4), np.float32, chunks=-1)
    begin = time.perf_counter()
    with never:
        y = xconv.conv(x, w, **options)
        dx = xconv.conv_input_grad(y, w, x.shape, **options)
        dw = xconv.conv_weight_grad(y, x, w.shape, **options)
    assert time.perf_counter() - begin < 2
    assert max(len(a.dask.layers[a.name]) for a in (y, dx, dw)) < 100


def test_a_coarse_side_is_cut_as_the_fine_one():
    """No task of a weight gradient reads more than a chunk and its halo, though `dy` lies in one piece."""
    x, dy = da.ones((1, 1, 96, 96), chunks=(1, 1, 16, 16)), np.ones((1, 1, 96, 96))
    options = {"padding": 1, "algorithm": "gemm"}
    dw = xconv.conv_weight_grad(dy, x, (1, 1, 3, 3), **options)
    assert kinds(dw)["weight-grad-partial"] == 36
    assert np.array_equal(dw.compute(), xconv.conv_weight_grad(dy, np.ones(x.shape), (1, 1, 3, 3), **options))
    dw = xconv.conv_weight_grad(da.from_array(dy, chunks=16), np.ones(x.shape), (1, 1, 3, 3), padding=1)
    assert kinds(dw)["weight-grad-partial"] == 36


def tasks(array, kind):
    layer = array.__dask_graph__().layers[array.name]
    return [task for key, task in layer.items() if f"-{kind}-" in key[0]]


def test_what_tasks_get_is_left_alone():
    """A part of a chunk does not hold the chunk; and a gradient to which padding is added is not written to."""
    x, w = da.ones((1, 1, 30), chunks=10), np.ones((1, 1, 3))
    y = xconv.conv(x, w, padding=1)
    part = next(task for task in y.__dask_graph__().layers[y.name].values() if task.key[0].startswith("xconv-part-"))
    chunk = np.ones((1, 1, 10))
    assert part(dict.fromkeys(part.dependencies, chunk)).base is None
    dx = xconv.conv_input_grad(y, w, x.shape, padding=1, pad_mode="edge")
    patched = dx.__dask_graph__().layers[dx.name][dx.name, 0, 0, 0]
    given = {key: np.ones((1, 1, 10 if "inner" in key[0] else 1)) for key in patched.dependencies}
    assert patched(given)[0, 0, 0] == 2
    assert all(np.all(a == 1) for a in given.values())


def test_the_same_bits_on_any_scheduler(rng):
    x, w = (
        da.from_array(rng.standard_normal(s).astype("float32"), chunks=c) for s, c in (((2, 4, 99), 9), ((3, 4, 5), 9))
    )
    y = xconv.conv(x, w)
    dw = xconv.conv_weight_grad(y, x, w.shape)
    values = [dw.compute(scheduler=name) for name in ("synchronous", "threads", "threads")]
    assert np.array_equal(values[0], values[1])
    assert np.array_equal(values[0], values[2])


def test_on_a_cluster():
    """An image that no worker has room for; `nox -s large` does so with 4 GiB. A worker is killed on the way."""
    pytest.importorskip("distributed")
    example = Path(__file__).parents[1] / "examples" / "large.py"
    run = subprocess.run(
        [sys.executable, example, "--size=2048", "--chunk=256", "--kill-at=2"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        # A worker that is killed leaves half a file of measurements behind.
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
    )
    assert run.returncode == 0, run.stderr
    assert "every number is right" in run.stdout


# what does not fit


def test_filters_in_any_order_stay_lazy(never, rng):
    """Those in chunks, and those of NumPy; the graph has one step more."""
    x, w = rng.integers(-4, 5, (2, 3, 9)) * 1.0, rng.integers(-4, 5, (5, 3, 4)) * 1.0
    expected, dw = xconv.conv(x, w.transpose(2, 1, 0)), xconv.conv_weight_grad(np.ones((2, 4, 5)), x, (4, 3, 5))
    x_ = da.from_array(x, chunks=(1, 3, 4))
    with never:
        made = [xconv.conv(x_, a, w_layout="...io") for a in (w, da.from_array(w, chunks=2))]
        made.append(xconv.conv_weight_grad(da.ones((2, 4, 5)), x_, w.shape, w_layout="...io"))
    for a, b in zip(made, (expected, expected, dw.transpose(2, 1, 0)), strict=True):
        assert np.array_equal(a.compute(), b)


def test_numpy_filters_come_along(rng):
    x, w, b = rng.standard_normal((1, 2, 30)), rng.standard_normal((3, 2, 5)), rng.standard_normal(3)
    lazy = da.from_array(x, chunks=10)
    expected = xconv.conv(x, w, b)
    assert np.allclose(xconv.conv(lazy, w, b).compute(), expected)
    assert np.allclose(xconv.conv(x, da.from_array(w), b).compute(), expected)
    dw = xconv.conv_weight_grad(expected, lazy, w.shape)
    assert np.allclose(dw.compute(), xconv.conv_weight_grad(expected, x, w.shape))


def test_chunks_of_two_libraries():
    x = da.ones((1, 1, 9), chunks=3)
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(TypeError, match=r"`x` and `w` must be of one array library, got .*dask.* and .*strict"):
        xconv.conv(x, strict.ones((1, 1, 3)))
    other = x.map_blocks(lambda a: a, meta=strict.ones((0, 0, 0)))
    with pytest.raises(TypeError, match=r"chunks of `x` and `w` must be of one array library, got numpy and .*strict"):
        xconv.conv(x, other)


@pytest.mark.usefixtures("exact")
def test_chunks_that_are_no_plain_arrays(tmp_path):
    masked = da.ones((1, 1, 9), chunks=3).map_blocks(np.ma.masked_array, meta=np.ma.masked_array(np.ones((0, 0, 0))))
    with pytest.raises(TypeError, match="`x` must be a plain array, got MaskedArray"):
        xconv.im2col(masked, 3)
    csr = pytest.importorskip("scipy.sparse").csr_array(np.ones((0, 0)))
    sparse = da.ones((1, 1, 9), chunks=3)
    sparse._meta = csr
    with pytest.raises(TypeError, match="the chunks of `x` must be arrays of NumPy or CuPy, got csr_array"):
        xconv.conv(sparse, np.ones((1, 1, 3)))
    mapped = np.memmap(tmp_path / "w", np.float64, "w+", shape=(1, 1, 3))
    mapped[...] = 2
    assert np.array_equal(xconv.conv(da.ones((1, 1, 9), chunks=3), mapped).compute(), np.full((1, 1, 7), 6.0))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("which", [0, 1])
def test_unknown_sizes(name, which):
    function, arrays = FUNCTIONS[name]
    arrays = list(arrays)
    arrays[which] = arrays[which][:, :, arrays[which][0, 0] > 0]
    with pytest.raises(ValueError, match=r"`\w+` must have chunks of known sizes, .* compute_chunk_sizes"):
        function(*arrays, padding=1, groups=2)


def test_errors_come_before_any_work(never):
    x, w = da.ones((1, 2, 9), chunks=3), da.ones((1, 2, 3), chunks=-1)
    with never:
        with pytest.raises(ValueError, match="`algorithm` 'winograd' cannot serve this convolution: the dilation"):
            xconv.conv(x, w, dilation=2, algorithm="winograd")
        with pytest.raises(ValueError, match="`w`"):
            xconv.conv(x, w[:, :1])
        with pytest.raises(TypeError, match="`x` and `w` must lie in one piece"):
            xconv.plan(x, w)


def test_settings_are_those_of_the_call(rng, monkeypatch):
    x, w = rng.standard_normal((1, 8, 40, 40)), rng.standard_normal((8, 8, 3, 3))
    lazy = da.from_array(x, chunks=(1, 8, 20, 40))
    with xconv.config(workspace=1):
        y = xconv.conv(lazy, w)
    with pytest.raises(ValueError, match="`workspace` must be at least"):
        y.compute()
    seen = []
    monkeypatch.setattr(Backend, "call", lambda *_: seen.append(xconv._config.current().precision) or np.ones(0))
    with xconv.config(precision="tf32"):
        y = xconv.conv(lazy, w)
    y.to_delayed().ravel()[0].compute()
    assert seen == ["tf32"]


def test_building_waits_for_no_garbage():
    """Collections would look at every task of a large graph, again and again; afterwards they are on again."""
    x, w = da.zeros((1, 1, 400, 400), chunks=(1, 1, 10, 10)), np.ones((1, 1, 3, 3))
    collections = []
    gc.callbacks.append(lambda phase, _: collections.append(phase))
    try:
        xconv.conv(x, w, padding=1)
    finally:
        gc.callbacks.pop()
    assert len(collections) < 10
    assert gc.isenabled()
