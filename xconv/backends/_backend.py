"""What the planner asks of an array library: dtypes, devices, which algorithms there are, and what they cost."""

import math
import operator
import re
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import perf_counter

from .._geometry import Geometry
from .._typing import Array, DType, Kind, Shape
from .._values import ONLY_INTEGERS
from ..algorithms import PORTABLE, Algorithm
from ..primitives import Costs, Primitives, device
from ..schedules import Schedule, Tiled

MIB = 2**20

#: Numbers that some libraries can store, and hardly compute with.
STORED = re.compile(r"u?int[124]$|float[468](_|$)|torch\.(uint(16|32|64)|complex32)$")


class Backend(Primitives):
    """A library that has nothing of its own."""

    #: The algorithms by name, in the order in which ``"auto"`` considers them.
    algorithms: Mapping[str, Algorithm] = PORTABLE
    #: Names of those that are not chosen by themselves, because nobody has seen that they pay.
    unproven: frozenset[str] = frozenset()
    #: The temporary memory of a tile where nothing else is asked for.
    tile_bytes = 256 * MIB
    #: Whether the numbers of an array can be looked at: they are neither traced nor on another device.
    sees_numbers = False
    #: Whether tiles can run in parallel.
    parallel = False
    #: How convolutions are run whose arrays lie in chunks of another library; None where they do not.
    chunked: Callable[..., Schedule] | None = None

    # dtypes

    def kind(self, dtype: DType) -> Kind:
        """What the numbers of this dtype are; None where they have no sums of products."""
        if STORED.match(_name(dtype)) or STORED.match(str(dtype)):
            return None
        if self.xp.isdtype(dtype, "integral"):
            return "integer"
        if self.xp.isdtype(dtype, "complex floating"):
            return "complex"
        if self.xp.isdtype(dtype, "real floating"):
            return "real"
        return None

    def to_dtype(self, dtype: object) -> DType:
        """`dtype`, or the one of that name, if it is of this library and can be summed; TypeError otherwise."""
        found = getattr(self.xp, dtype, None) if isinstance(dtype, str) else dtype
        try:
            known = self.kind(found) is not None
        except (TypeError, ValueError, AttributeError):
            known = False
        if not known:
            msg = f"`dtype` must be an integer, real or complex floating dtype of {self.name}, got {dtype!r}"
            raise TypeError(msg)
        return found

    def common(self, *dtypes: DType) -> DType | None:
        """The dtype that all of these promote to; None where the library has none."""
        try:
            return self.xp.result_type(*dtypes)
        except (TypeError, RuntimeError):
            return None

    def accumulator(self, dtype: DType) -> DType:
        """The dtype in which products of `dtype` are summed: float32 for the half types."""
        return self.xp.float32 if _name(dtype) in {"float16", "bfloat16"} else dtype

    def operand(self, dtype: DType) -> DType:
        """The dtype in which an algorithm that takes half types multiplies `dtype`."""
        return self.accumulator(dtype)

    def itemsize(self, dtype: DType) -> int:
        """Bytes of one element."""
        if self.kind(dtype) == "integer":
            return int(self.xp.iinfo(dtype).bits) // 8
        parts = 2 if self.kind(dtype) == "complex" else 1
        return parts * int(self.xp.finfo(dtype).bits) // 8

    def filling(self, value: complex, dtype: DType) -> complex:
        """`value` as an array of this dtype holds it; ValueError where it cannot."""
        kind, rule = self.kind(dtype), f"within the range of {dtype}"
        if kind == "integer":
            limits = self.xp.iinfo(dtype)
            rule = f"an integer from {limits.min} to {limits.max}"
            if not value.imag and limits.min <= value.real <= limits.max and value.real == int(value.real):
                return int(value.real)
        elif kind == "real" and value.imag:
            rule = "a real number"
        else:
            with suppress(OverflowError):
                size = self.itemsize(dtype) // (2 if kind == "complex" else 1)
                code = "<f" if _name(dtype) == "bfloat16" else {2: "<e", 4: "<f"}.get(size, "<d")
                real, imag = (_narrowed(part, code) for part in (value.real, value.imag))
                return complex(real, imag) if imag else real
        msg = f"`pad_value` must be {rule} for a result of {dtype}, got {value!r}"
        raise ValueError(msg)

    # shapes and devices

    def shape(self, name: str, x: Array) -> Shape:
        """The shape of `x` in plain integers, of which a trace makes something else; TypeError for symbols."""
        shape = tuple(x.shape)
        if ONLY_INTEGERS.issuperset(map(type, shape)):
            return shape
        try:
            return tuple(map(operator.index, shape))
        except TypeError as error:
            msg = (
                f"`{name}` must have sizes in numbers, got shape {tuple(x.shape)}: export a program for every size, or "
                "one that maps (`vmap`) the convolution of a single image over a batch of any size"
            )
            raise TypeError(msg) from error

    def place(self, x: Array) -> str:
        """The name of the device of `x`, for a record of times."""
        return str(device(x))

    def adopts(self, array: Array) -> bool:
        """Whether an array of another library may come along with this library's."""
        del array
        return False

    def of(self, arrays: dict[str, Array]) -> "Backend":
        """The backend of these arrays; TypeError unless they are dense and on one device, if the library tells."""
        for name, a in arrays.items():
            layout = str(getattr(a, "layout", "torch.strided"))  # of PyTorch
            if getattr(a, "is_nested", False):
                msg = f"`{name}` must be a dense array, got a nested one"
                raise TypeError(msg)
            if layout.startswith("torch.") and layout != "torch.strided":
                msg = f"`{name}` must be a dense array, got one of layout {layout}"
                raise TypeError(msg)
        known = {name: device(a) for name, a in arrays.items()}
        # JAX does not tell under jit, and looks after sharded arrays itself.
        known = {name: d for name, d in known.items() if d is not None and not hasattr(d, "device_set")}
        for name, other in zip(known, list(known)[1:], strict=False):
            if known[name] != known[other]:
                msg = f"`{name}` and `{other}` must be on one device, got {known[name]} and {known[other]}"
                raise TypeError(msg)
        return self

    def call(self, tiled: Tiled, *arrays: Array, **options: bool) -> Array:
        """Run a function on the device of its first array.

        What the backend remembers of that for later calls is in ``tiled.remembered``.
        """
        return tiled.run(*arrays, **options)

    # costs

    def tile_size(self, algorithm: str, g: Geometry, dtype: DType, whole: float, shares: int) -> float:
        """Bytes of temporary memory for a tile of a call by some algorithm that would take `whole` in one piece.

        It is worth so many shares.
        """
        del algorithm, g, dtype, whole, shares
        return self.tile_bytes

    def costs(self, dtype: DType, precision: str) -> Costs:
        """What the primitives cost for arrays of this dtype."""
        del precision
        width = self.itemsize(self.accumulator(dtype)) / 4
        is_complex = self.kind(dtype) == "complex"
        multiply = Costs.complex_multiply / 2 if is_complex else 1
        return Costs(multiply * width, 12 * width, 400_000, is_complex=is_complex)

    def seconds(self, run: Callable[[], Array], calls: int) -> float | None:
        """Time of so many calls, until their results are there; None where these are only traced."""
        start = perf_counter()
        for _ in range(calls):
            made = run()
        read = {"integer": int, "real": float, "complex": complex}[self.kind(made.dtype) or "real"]
        try:
            read(made[(0,) * made.ndim])  # the one thing that waits in every library
        except (TypeError, RuntimeError):
            return None
        return perf_counter() - start


def _narrowed(value: float, code: str) -> float:
    """`value` as what `struct` packs by a code; OverflowError where it is out of that one's range."""
    return float(struct.unpack(code, struct.pack(code, value))[0]) if math.isfinite(value) else value


def _name(dtype: DType) -> str:
    return str(getattr(dtype, "name", dtype)).removeprefix("torch.")
