"""The settings of a block of code, kept in a context variable: each thread and each asyncio task has its own."""

from contextvars import ContextVar
from types import EllipsisType
from typing import Literal, NamedTuple, Self

from ._tuning import Tuning
from ._values import integer


class Settings(NamedTuple):
    workspace: int | None = None
    precision: str = "ieee"
    numerics: str = "fast"
    threads: int | None = None
    tuning: Tuning | None = None


class _State(NamedTuple):
    """The settings of a line of code, and what each block around it found when it was entered, the innermost last."""

    settings: Settings
    found: tuple[tuple[object, Settings], ...] = ()


#: Outside of all blocks.
_DEFAULTS = _State(Settings())
_state: ContextVar[_State] = ContextVar("xconv.settings", default=_DEFAULTS)


def current() -> Settings:
    return _state.get().settings


class applied:  # noqa: N801
    """Run a block with exactly these settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> None:
        self._token = _state.set(_State(self._settings))

    def __exit__(self, *error: object) -> None:
        _state.reset(self._token)


class config:  # noqa: N801
    """Change how convolutions run inside a ``with`` block.

    What is not named keeps the value of the surrounding block, and None brings back the default. The settings hold for
    the current thread and asyncio task. A ``config`` may be used many times, and by several threads. Its end brings
    back what its beginning found, in whatever order blocks are left, as that of :func:`decimal.localcontext` does.

    Parameters
    ----------
    workspace : int, optional
        The most temporary memory that the arrays of a call may take, in bytes, beside its result. The call is cut into
        tiles that fit. A call that cannot fit is a ValueError that says how much it needs. Python's own objects and the
        buffers of NumPy's operations come to 100 or 200 kB more. By default the tiles have the size that is best for
        the caches, and on a GPU up to 1.5 GiB. The NumPy backend keeps up to 32 MiB per thread, and as much again for
        all threads together, for the next call.
    precision : {"ieee", "tf32"}, optional
        How products of float32 are computed on a GPU: as exactly as in float32 (the default), be it by three products
        of TF32 numbers for one, or with the inputs rounded to TF32 (10 bits of mantissa) for speed. CPUs always compute
        in float32.
    numerics : {"fast", "strict"}, optional
        Whether ``algorithm="auto"`` may choose every algorithm (the default), or only those with the
        componentwise bound ``|err| <= K * eps * conv(|x|, |w|)``, which also keep NaN and infinity within the
        windows that see them. Float32 is then multiplied in float32 alone.
    threads : int, optional
        Threads of the NumPy backend, at most: calls with little work stay in their thread. By default as many as
        NumPy's BLAS may use at the moment of the call. Results do not depend on it.
    tuning : Tuning, optional
        A record of measured times: ``algorithm="auto"`` chooses by it, and measures what it does not hold. By default
        nothing is measured, and what is predicted to be fastest is chosen.

    Raises
    ------
    ValueError, TypeError
        For a setting that has no meaning, when ``config`` is called.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> x, w = np.ones((1, 3, 64, 64)), np.ones((8, 3, 5, 5))
    >>> with xconv.config(workspace=2**20, threads=1):
    ...     y = xconv.conv(x, w)
    >>> y.shape
    (1, 8, 60, 60)
    """

    def __init__(
        self,
        *,
        workspace: int | EllipsisType | None = ...,
        precision: Literal["ieee", "tf32"] | EllipsisType | None = ...,
        numerics: Literal["fast", "strict"] | EllipsisType | None = ...,
        threads: int | EllipsisType | None = ...,
        tuning: Tuning | EllipsisType | None = ...,
    ) -> None:
        changes: dict[str, object] = {}
        if not isinstance(tuning, EllipsisType):
            changes["tuning"] = _checked(tuning)
        for name, number in (("workspace", workspace), ("threads", threads)):
            if isinstance(number, EllipsisType):
                continue
            changes[name] = number if number is None else integer(name, number)
            if number is not None and number < 1:
                msg = f"`{name}` must be at least 1, got {number}"
                raise ValueError(msg)
        choices = (("precision", precision, ("ieee", "tf32")), ("numerics", numerics, ("fast", "strict")))
        for name, choice, known in choices:
            if isinstance(choice, EllipsisType):
                continue
            changes[name] = known[0] if choice is None else choice
            if changes[name] not in known:
                msg = f"`{name}` must be one of {known}, got {choice!r}"
                raise ValueError(msg)
        self._changes = changes

    def __enter__(self) -> Self:
        settings, found = _state.get()
        changed = settings._replace(**self._changes)  # type: ignore[arg-type]
        _state.set(_State(changed, (*found, (self, settings))))
        return self

    def __exit__(self, *error: object) -> None:
        _, found = _state.get()  # without this block, where a generator is closed by another thread or task
        for i in reversed(range(len(found))):
            block, settings = found[i]
            if block is self:
                _state.set(_State(settings, (*found[:i], *found[i + 1 :])))
                return


def _checked(tuning: object) -> Tuning | None:
    if tuning is None or isinstance(tuning, Tuning):
        return tuning
    msg = f"`tuning` must be an `xconv.Tuning`, got {tuning!r}"
    raise TypeError(msg)
