"""The array libraries under test, behind one small interface."""

import contextlib
import importlib
import importlib.util
from enum import Enum

import numpy as np
from hypothesis import settings


class Backend(Enum):
    """What ``--backend`` accepts.

    The strictest array-api-strict has no extensions and no data-dependent shapes; CuPy on the host needs no GPU; Dask
    computes nothing before a test looks at a result.
    """

    NUMPY = "numpy"
    STRICT = "strict"
    STRICTEST = "strictest"
    TORCH = "torch"
    JAX = "jax"
    JAX64 = "jax64"
    CUPY = "cupy"
    CUPY_ON_HOST = "cupy-on-host"
    DASK = "dask"

    @property
    def module(self):
        names = {"strict": "array_api_strict", "strictest": "array_api_strict", "jax64": "jax", "cupy-on-host": "cupy"}
        return names.get(self.value, self.value)

    def library(self):
        return Library(self)


class Library:
    """One array library: its namespace, and the way between its arrays and NumPy's."""

    def __init__(self, backend):
        self.backend = backend
        self.name = backend.value
        module = importlib.import_module(backend.module)
        if backend is Backend.CUPY and not module.is_available():
            msg = "--backend=cupy needs a CUDA device, and CuPy finds none: see `nvidia-smi` and `cupy.show_config()`"
            raise RuntimeError(msg)
        spelled = {"numpy": "numpy", "torch": "array_api_compat.torch"}
        spelled |= {"jax": "jax.numpy", "jax64": "jax.numpy"}
        spelled |= {"dask": "array_api_compat.dask.array"}
        spelled |= {"cupy": "array_api_compat.cupy", "cupy-on-host": "array_api_compat.cupy"}
        self.xp = importlib.import_module(spelled.get(self.name, backend.module))
        #: Widest real dtype of the library as it is set up.
        self.real = "float32" if self.name == "jax" else "float64"
        #: How many hypothesis examples are worth their time, of a hundred: JAX compiles every new shape.
        shares = {"numpy": 100, "strict": 15, "strictest": 15, "torch": 20, "cupy": 20, "cupy-on-host": 4, "dask": 5}
        self.share = shares.get(self.name, 0.25)

    def __repr__(self):
        return self.name

    def examples(self, part=1):
        """A hypothesis setting: the library's share of a part of the examples, and at least five."""
        return settings(max_examples=max(5, int(settings().max_examples * self.share / 100 / part)))

    @contextlib.contextmanager
    def active(self):
        """Flags that only hold while a test runs."""
        if self.name == "strictest":
            from xconv._planner import scheduled

            scheduled.cache_clear()  # plans of this library with all that it has
            with self.xp.ArrayAPIStrictFlags(
                api_version="2023.12", boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
            ):
                yield
            scheduled.cache_clear()
        elif self.backend is Backend.CUPY_ON_HOST:
            from kernels.standin import StandIn

            with StandIn().installed():
                yield
        elif self.backend is Backend.DASK:
            import dask

            with dask.config.set(scheduler=refuse):
                yield
        elif self.module_is("jax"):
            import jax

            with jax.enable_x64(self.name == "jax64"):
                yield
        else:
            yield

    def module_is(self, name):
        return self.backend.module == name

    def dtype(self, name):
        return getattr(self.xp, name)

    def has(self, name):
        return hasattr(self.xp, name) and not (
            self.name == "jax" and name in {"float64", "complex128", "int64", "uint64"}
        )

    def can_multiply(self, name):
        """Whether the library has matrix products of this dtype."""
        return self.has(name) and not (self.name == "torch" and name in {"uint16", "uint32", "uint64"})

    def array(self, values, dtype=None):
        """`values`, a NumPy array or what makes one, as an array of this library."""
        values = np.asarray(values) if dtype is None else np.asarray(values).astype(dtype)
        if self.name == "jax" and values.dtype == np.float64:
            values = values.astype(np.float32)
        if self.name == "numpy":
            return values
        if self.name == "dask":  # two chunks, where an axis has elements for two
            return self.xp.from_array(values.copy(), chunks=tuple(max(1, -(-n // 2)) for n in values.shape))
        return self.xp.asarray(values.copy())

    def numpy(self, array):
        """The elements of an array of this library; only here a test leaves the library."""
        if self.module_is("cupy"):
            return array.get()
        if self.name == "dask":
            return array.compute(scheduler="synchronous")
        if self.name == "torch":
            return array.detach().cpu().numpy()
        return np.asarray(array)

    def is_in_order(self, array):
        """Whether its elements follow one another in memory, where the library tells."""
        if self.name == "torch":
            return array.is_contiguous()
        return not hasattr(array, "flags") or array.flags.c_contiguous

    def check(self, actual, expected, *, dtype=None, bound=0.0):
        """Assert the library, dtype and shape of `actual`, and its values to within `bound` (0 means equal)."""
        import array_api_compat

        compared = self.xp.empty(0)
        assert array_api_compat.array_namespace(actual) is array_api_compat.array_namespace(compared)
        assert array_api_compat.device(actual) == array_api_compat.device(compared)
        assert tuple(actual.shape) == tuple(expected.shape)
        if dtype is not None:
            assert actual.dtype == self.dtype(dtype)
        values = self.numpy(actual)
        difference = np.abs(values.astype(expected.dtype) - expected)
        assert np.all(difference <= bound), f"off by {np.max(difference)}, more than {np.max(bound)}"


def refuse(*args, **options):
    """A scheduler of Dask's that computes nothing."""
    msg = "computed before it was asked for"
    raise AssertionError(msg)


def installed(backend):
    return importlib.util.find_spec(backend.module) is not None
