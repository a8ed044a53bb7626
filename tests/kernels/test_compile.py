"""NVIDIA's compiler takes every kernel, for every architecture, and makes of it what was meant."""

import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from cupy.cuda.compiler import CompileException

from kernels import cuda
from kernels.cases import DTYPES, VERBS, case
from xconv._axis import Axis
from xconv._geometry import Geometry
from xconv.backends.cupy import _kernels as texts
from xconv.backends.cupy import _lines

#: A layer of a network; and one with steps, of 1 to 3 axes.
LAYER = Geometry(2, 16, 16, 1, (Axis(20, 3, 1, 1, 1, 1), Axis(24, 3, 1, 1, 1, 1)))
STEPS = (Axis(11, 3, 2, 1, 1, 2), Axis(17, 4, 3, 2, 0, 1), Axis(6, 2, 1, 1, 1, 0))
#: Most registers of a thread: with 80, some 800 threads run on one multiprocessor. Packs of 16 integers take more.
REGISTERS, REGISTERS_OF_PACKED_BYTES = 80, 192


def compiled(cases, architecture=90):
    """Each case with its binary, whose common demands are checked: no spills, and few registers."""

    def compile_(c):
        return cuda.compiled(c.kernel, *(a.memory.dtype for a in c.arrays), architecture=architecture)

    with ThreadPoolExecutor(2) as pool:
        pairs = [(c, pool.submit(compile_, c)) for c in cases]
    pairs = [(c, binary.result()) for c, binary in pairs]
    for c, binary in pairs:
        assert binary.spilled == 0, c.kernel.name
        few = REGISTERS_OF_PACKED_BYTES if c.kernel.name.endswith("_16") else REGISTERS
        assert binary.registers <= few, (c.kernel.name, binary.registers)
    return pairs


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype):
    """Specialised texts, and for some dtypes general ones."""
    forms = [(True, 1)]
    if dtype in {"float32", "float16", "complex64", "int8"}:
        forms += [(True, 0), (False, 0)]
    cases = (
        case(verb, LAYER, dtype, literal=form, seed=seed, scattered=False) for form, seed in forms for verb in VERBS
    )
    compiled(cases)


@pytest.mark.parametrize("architecture", [a for a in cuda.ARCHITECTURES if a != 90])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_architecture(architecture, dtype):
    """Packed where channels are last."""
    compiled((case(verb, LAYER, dtype, literal=True, seed=1, scattered=False) for verb in VERBS), architecture)


@pytest.mark.parametrize("architecture", cuda.ARCHITECTURES)
def test_general_texts_on_every_architecture(architecture):
    compiled((case(verb, LAYER, literal=False, seed=1) for verb in VERBS), architecture)


@pytest.mark.parametrize("literal", [True, False])
def test_every_rank(literal):
    geometries = [Geometry(2, 6, 6, 1, STEPS[:rank]) for rank in (1, 3)]
    compiled(case(verb, g, "float16", literal=literal, wide=True) for verb in VERBS for g in geometries)


@pytest.mark.parametrize("axes", [LAYER.axes, STEPS[:2]], ids=["layer", "steps"])
@pytest.mark.parametrize("apart", [0, 2**31], ids=["32 bits, neighbours", "64 bits"])
def test_a_specialised_kernel_only_waits_for_memory(axes, apart):
    """It loads what a thread needs and no more, and divides by nothing but constants."""
    g = Geometry(2, 16, 16, 1, axes)
    cases = [case(verb, g, literal=True, scattered=False, apart=(apart, 0)) for verb in VERBS]
    packed = {v for v in VERBS[:4] if v in {"im2col", "depthwise"} or axes[-1].size % 2 == 0}
    for (c, binary), verb in zip(compiled(cases), VERBS, strict=True):
        assert ("_i64_" in c.kernel.name) == (apart > 0)
        assert pack_of(c) == (2 if verb in packed and not apart else 1)
        assert binary.count("CALL|MUFU") == 0
        assert binary.count("LDL|STL") == 0
        assert binary.count("LDG") == loads(verb, g, pack_of(c))
        assert binary.count("STG") == (g.taps if verb in {"im2col", "depthwise_weight_grad"} else 1)


def pack_of(c):
    return int(c.kernel.name.rpartition("_")[-1])


def loads(verb, g, pack):
    """How many elements a thread needs for `pack` neighbours on the last axis: those it reads, and filters."""
    *others, last = g.axes
    taps = range(last.kernel)
    if verb == "depthwise_weight_grad":
        return g.taps + 1
    if verb in {"im2col", "depthwise"}:
        places = {t * last.dilation + j * last.stride for t in taps for j in range(pack)}
        read = math.prod(a.kernel for a in others) * len(places)
        return read + (g.taps if verb == "depthwise" else 0)
    matter = math.prod(-(-a.kernel // period(a)) for a in others)
    if pack == 1:
        matter *= -(-last.kernel // period(last))
        return matter if verb == "col2im" else 2 * matter
    reached = [(t, j + last.lo - t * last.dilation) for t in taps for j in range(pack)]
    reached = {(t, q // last.stride) for t, q in reached if q % last.stride == 0}
    if verb == "col2im":
        return matter * len(reached)
    return matter * (len({o for _, o in reached}) + last.kernel)


def period(axis):
    return axis.stride // math.gcd(axis.stride, axis.dilation)


#: Layers of networks, with enough threads that neighbours share one.
LAYERS = {
    "3x3": Geometry(64, 64, 64, 1, (Axis(56, 3, 1, 1, 1, 1),) * 2),
    "7x7 stride 2": Geometry(64, 3, 64, 1, (Axis(224, 7, 2, 1, 3, 3),) * 2),
    "3x3 stride 2": Geometry(64, 128, 128, 1, (Axis(56, 3, 2, 1, 1, 1),) * 2),
}


@pytest.mark.parametrize(
    ("layer", "verb", "dtype", "most"),
    [
        ("3x3", "im2col", "float16", 0.4),
        ("3x3", "im2col", "float32", 0.65),
        ("3x3", "col2im", "float16", 0.6),
        ("7x7 stride 2", "im2col", "float16", 0.5),
        ("7x7 stride 2", "col2im", "float16", 0.6),
        ("3x3 stride 2", "col2im", "float16", 0.45),
        ("3x3 stride 2", "col2im", "float32", 0.55),
    ],
)
def test_neighbours_share_instructions_and_stores(layer, verb, dtype, most):
    """Two of float32 and four of a half type: `most` is the part of an element's instructions that may be left."""
    g = LAYERS[layer]
    (c, together), (_, alone) = compiled([Bare(verb, g, dtype), Bare(verb, g, dtype, threads=2**40)])
    assert pack_of(c) == 8 // np.dtype(dtype).itemsize
    assert together.count(r"STG\S*\.64") == together.count("STG") == alone.count("STG")
    assert together.count("LDG") == loads(verb, g, pack_of(c))
    assert alone.count("LDG") == loads(verb, g, 1)
    assert together.count("BRA") == alone.count("BRA")
    assert together.registers <= 48
    assert together.count("(?!NOP)") / pack_of(c) < most * alone.count("(?!NOP)")


@pytest.mark.parametrize("architecture", cuda.ARCHITECTURES)
def test_neighbours_are_written_at_once(architecture):
    """By specialised texts, and by those general ones that have any; also where half types come out as float32."""
    verbs = ("im2col", "col2im", "depthwise_input_grad")
    forms = [("im2col", False, False), *((verb, True, verb == "depthwise_input_grad") for verb in verbs)]
    cases = [case(v, LAYER, "float16", literal=form, wide=wide, scattered=False) for v, form, wide in forms]
    for (c, binary), (*_, wide) in zip(compiled(cases, architecture), forms, strict=True):
        assert pack_of(c) == 4
        assert binary.count("STG") == binary.count(r"STG\S*\.128" if wide else r"STG\S*\.64") > 0


class Bare:
    """A kernel between images and columns that are contiguous, and not there."""

    def __init__(self, verb, g, dtype, threads=_lines.THREADS):
        memories = []
        for shape in (g.x_shape, g.columns_shape):
            steps = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
            memories.append(_lines.Memory(dtype, np.dtype(dtype).itemsize, shape, steps, aligned=True))
        if verb == "col2im":
            memories.reverse()
        self.arrays = [SimpleNamespace(memory=memory) for memory in memories]
        with patch.object(_lines, "THREADS", threads):
            self.kernel = getattr(texts, verb)(g, *memories, literal=True)


def test_a_general_kernel_divides():
    """What the last test looks for is there where numbers are not known."""
    narrow, wide = (case("col2im", LAYER, literal=False, scattered=False, apart=(apart, 0)) for apart in (0, 2**31))
    (_, narrow), (_, wide) = compiled([narrow, wide])
    assert narrow.count("MUFU") > 0
    assert wide.count("CALL") > 0


def test_packs_of_channels_are_loaded_at_once():
    for c, binary in compiled(case(verb, LAYER, "float16", seed=1, scattered=False) for verb in VERBS[:4]):
        assert c.kernel.name.endswith("_8")
        assert binary.count(r"LDG\S*\.128") == binary.count("LDG") > 0
        assert binary.count(r"STG\S*\.128") == binary.count("STG") > 0


@pytest.mark.parametrize("verb", VERBS)
def test_a_misspelt_name_is_an_error(verb):
    kernel = case(verb, LAYER).kernel
    wrong = kernel._replace(operation=kernel.operation.replace("sum", "sun", 1))
    with pytest.raises(CompileException, match="sum"):
        cuda.compiled(wrong, *(["float32"] * kernel.inputs.count("raw")), "float32")
