"""The conformance cases that the onnx wheel brings for Conv, ConvTranspose and Col2Im: an oracle by other hands."""

import importlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import xconv

onnx = pytest.importorskip("onnx")
node_cases = pytest.importorskip("onnx.backend.test.case.node")
helper, numpy_helper = (importlib.import_module(f"onnx.{name}") for name in ("helper", "numpy_helper"))

pytestmark = pytest.mark.usefixtures("exact")  # bounds are those of the plain sum

OPERATORS = {"Conv": "conv", "ConvTranspose": "convtranspose", "Col2Im": "col2im"}


@dataclass(frozen=True)
class Case:
    name: str
    operator: str
    attributes: dict
    inputs: list
    output: np.ndarray


def recorded_cases():
    """Models with inputs and outputs in files."""
    data = Path(onnx.backend.test.__file__).parent / "data"
    for model in sorted(data.glob("pytorch-*/*/model.onnx")):
        graph = onnx.load(model).graph
        if len(graph.node) != 1 or graph.node[0].op_type not in OPERATORS:
            continue
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        free = [value.name for value in graph.input if value.name not in weights]
        folders = sorted(model.parent.glob("test_data_set_*"))
        for number, folder in enumerate(folders):
            given = {name: read(folder / f"input_{i}.pb") for i, name in enumerate(free)}
            name = model.parent.name + (f"-{number}" if len(folders) > 1 else "")
            yield case(name, graph.node[0], weights | given, read(folder / "output_0.pb"))


def generated_cases():
    """Cases that the wheel computes as its modules are imported.

    `collect_testcases` would import the modules of all operators: five seconds and a dozen warnings.
    """
    for module in OPERATORS.values():
        importlib.import_module(f"{node_cases.__name__}.{module}")
    for found in node_cases._NodeTestCases:
        (node,) = found.model.graph.node
        if node.op_type in OPERATORS:
            names = [value.name for value in found.model.graph.input]
            for inputs, (output,) in found.data_sets:
                yield case(found.name, node, dict(zip(names, inputs, strict=True)), output)


def read(path):
    return numpy_helper.to_array(onnx.load_tensor(path))


def case(name, node, values, output):
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return Case(name, node.op_type, attributes, [values[name] for name in node.input], output)


CASES = [*recorded_cases(), *generated_cases()]


def options(attributes, rank):
    """ONNX attributes as xconv's options. Its pads are all the begins, then all the ends."""
    named = {b"SAME_UPPER": "same", b"SAME_LOWER": "same_lower", b"VALID": "valid"}
    pads = attributes.get("pads", [0] * 2 * rank)
    return {
        "stride": attributes.get("strides", 1),
        "dilation": attributes.get("dilations", 1),
        "padding": named.get(attributes.get("auto_pad"), list(zip(pads[:rank], pads[rank:], strict=True))),
    }


def run_conv(lib, attributes, x, w, *b):
    assert tuple(attributes.get("kernel_shape", w.shape[2:])) == w.shape[2:]
    groups = attributes.get("group", 1)
    return xconv.conv(*(lib.array(a) for a in (x, w, *b)), groups=groups, **options(attributes, x.ndim - 2))


def run_conv_transpose(lib, attributes, x, w, *b):
    rank = x.ndim - 2
    chosen = options(attributes, rank) | {"output_padding": attributes.get("output_padding", 0)}
    if "output_shape" in attributes:
        # The operator's rule: what is too much is cut off, its odd element at the begin unless SAME_UPPER is asked for.
        strides, dilations, extras = (
            attributes.get(name, [default] * rank)
            for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
        )
        chosen["padding"] = []
        for size, k, s, d, extra, wanted in zip(
            x.shape[2:], w.shape[2:], strides, dilations, extras, attributes["output_shape"], strict=True
        ):
            surplus = s * (size - 1) + extra + d * (k - 1) + 1 - wanted
            halves = (surplus - surplus // 2, surplus // 2)
            chosen["padding"].append(halves[::-1] if attributes.get("auto_pad") == b"SAME_UPPER" else halves)
    return xconv.conv_transpose(*(lib.array(a) for a in (x, w, *b)), groups=attributes.get("group", 1), **chosen)


def run_col2im(lib, attributes, cols, size, kernel):
    size, kernel = size.tolist(), kernel.tolist()
    chosen = options(attributes, len(size))
    # ONNX has the windows on one axis; how many there are per axis follows from what im2col makes of the size.
    out = xconv.im2col(np.zeros((1, 1, *size)), kernel, **chosen).shape[2 + len(size) :]
    channels = cols.shape[1] // math.prod(kernel)
    return xconv.col2im(lib.array(cols.reshape(len(cols), channels, *kernel, *out)), size, **chosen)


def rounding(c):
    """Bound on the difference of two float32 results: each is off by as much as its terms allow; integers are exact."""
    if all(np.all(a == np.rint(a)) for a in (*c.inputs, c.output)):
        return 0.0
    x, w, *b = c.inputs
    kept = 1 if c.operator == "ConvTranspose" else 0  # the axis of the filters that is not summed over
    per_channel = np.sum(np.abs(w), axis=tuple(i for i in range(w.ndim) if i != kept))
    largest = np.max(np.abs(x)) * np.max(per_channel) + max((np.max(np.abs(a)) for a in b), default=0.0)
    terms = w.size // w.shape[kept] + 1
    return 2 * terms * np.finfo(np.float32).eps * largest


def test_there_are_cases_of_every_kind():
    recorded, generated = len(list(recorded_cases())), len(list(generated_cases()))
    assert recorded >= 22
    assert generated >= 20
    assert {c.operator for c in CASES} == set(OPERATORS)


@pytest.mark.parametrize("c", CASES, ids=lambda c: c.name)
def test_conformance(lib, c):
    run = {"Conv": run_conv, "ConvTranspose": run_conv_transpose, "Col2Im": run_col2im}[c.operator]
    lib.check(run(lib, c.attributes, *c.inputs), c.output, dtype="float32", bound=rounding(c))
