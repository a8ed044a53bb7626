"""NVIDIA's compiler takes every kernel, for every architecture, and makes of it what was meant."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from cupy.cuda.compiler import CompileException

from kernels import cuda
from kernels.cases import DTYPES, VERBS, case
from xconv._axis import Axis
from xconv._geometry import Geometry

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
@pytest.mark.parametrize("apart", [0, 2**31], ids=["32 bits", "64 bits"])
def test_a_specialised_kernel_only_waits_for_memory(axes, apart):
    """It loads what a thread needs and no more, and divides by nothing but constants."""
    g = Geometry(2, 16, 16, 1, axes)
    periods = [a.stride // math.gcd(a.stride, a.dilation) for a in axes]
    matter = math.prod(-(-a.kernel // period) for a, period in zip(axes, periods, strict=True))
    loads = {"im2col": g.taps, "col2im": matter, "depthwise": 2 * g.taps, "depthwise_input_grad": 2 * matter}
    cases = [case(verb, g, literal=True, scattered=False, apart=(apart, 0)) for verb in VERBS]
    for c, binary in compiled(cases):
        assert ("_i64_" in c.kernel.name) == (apart > 0)
        assert binary.count("CALL|MUFU") == 0
        assert binary.count("LDL|STL") == 0
        verb = c.kernel.name.removeprefix("xconv_").split("_n2_")[0]
        assert binary.count("LDG") == loads.get(verb, g.taps + 1)
        assert binary.count("STG") == (g.taps if verb in {"im2col", "depthwise_weight_grad"} else 1)


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
