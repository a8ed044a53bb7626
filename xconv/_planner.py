"""The planner: which algorithm, in which tiles, within which memory; decided once per geometry and remembered.

The cost model counts what an algorithm does: its multiply-adds, and the elements that it moves through memory, of
which each costs as much time as so many multiply-adds as the backend says (`Backend.balance`).
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

from ._arguments import geometry, transposed_geometry
from ._config import Settings, applied
from ._geometry import Geometry, Tile
from ._typing import Array, DType, Shape
from .algorithms import ALGORITHMS, Algorithm, Chunked, Schedule, Tiled, Tuned
from .backends import MIB, Backend, Team, backend_of

#: Multiply-adds of a call that is worth a hold on the BLAS.
HEAVY = 2**19
#: The predicted cost, in multiply-adds of float32, of a call that is worth more than one thread: threads wait for each
#: other between any two operations.
SHARED = 2**26
#: Tiles of the input gradient share outputs, and compute their columns again. Where that is more than so many times the
#: work, they are made larger, up to this size.
REPETITION, MOST_TILE = 1.5, 256 * MIB
#: To fold an element back by summation takes as much time as to move so many, and so does to reflect one of a filter.
FOLDING, REFLECTING = 2, 3
#: What is predicted to take so many times as long as the best is not worth a measurement.
PROMISING = 16
#: So many tiles are kept with a plan; of more than that, each is made when its turn comes.
KEPT = 64
#: The most memory for partial sums of a weight gradient.
LANES, LANE_BYTES = 8, 64 * MIB


class Options(NamedTuple):
    """The keyword arguments of a convolution, hashable."""

    stride: object = 1
    padding: object = 0
    dilation: object = 1
    groups: int = 1
    pad_mode: str = "constant"
    layout: str = "channels_first"
    dtype: DType | None = None
    algorithm: str = "auto"
    #: None for a convolution, and a transposed one otherwise.
    output_padding: object = None
    #: Whether there is a product, or only im2col or col2im.
    multiplies: bool = True


class Candidate(NamedTuple):
    """An algorithm with its predicted cost in multiply-adds, and why it cannot serve or is not to be chosen."""

    name: str
    cost: int
    refusal: str | None
    note: str | None


@lru_cache(maxsize=1024)
def scheduled(
    backend: Backend,
    x_shape: Shape,
    w_shape: Shape,
    dtypes: tuple[tuple[str, DType], ...],
    options: Options,
    settings: Settings,
) -> Schedule:
    """Check everything that does not depend on the arrays' elements, and decide how to run it."""
    if options.layout not in {"channels_first", "channels_last"}:
        msg = f'`layout` must be "channels_first" or "channels_last", got {options.layout!r}'
        raise ValueError(msg)
    channels_last = options.layout == "channels_last"
    if channels_last and x_shape:
        x_shape = (x_shape[0], *x_shape[-1:], *x_shape[1:-1])
    sizes = {"stride": options.stride, "padding": options.padding, "dilation": options.dilation}
    if options.output_padding is None:
        given = dict(dtypes)
        names = ("x" if "x" in given else "x_shape", "w" if "w" in given else "w_shape")
        g = geometry(x_shape, w_shape, **sizes, groups=options.groups, pad_mode=options.pad_mode, names=names)
    else:
        g = transposed_geometry(x_shape, w_shape, **sizes, groups=options.groups, output_padding=options.output_padding)
    dtype = _result_dtype(backend, dtypes, options.dtype)
    g = replace(g, channels_last=channels_last)
    return _scheduled(backend, g, dtype, options.algorithm, settings, options.multiplies)


def computed(
    algorithm: str,
    settings: Settings,
    multiplies: bool,  # noqa: FBT001
    g: Geometry,
    dtype: DType,
    function: str,
    *arrays: Array,
    **how: bool,
) -> Array:
    """Schedule a convolution and run one of its functions: what a task does with parts of arrays in chunks."""
    backend = backend_of({f"operand {i}": a for i, a in enumerate(arrays)})
    schedule = _of_part(backend, g, backend.to_dtype(dtype), algorithm, settings, multiplies)
    with applied(settings):
        made: Array = getattr(schedule, function)(*arrays, **how)
    return made


def _scheduled(
    backend: Backend,
    g: Geometry,
    dtype: DType,
    algorithm: str,
    settings: Settings,
    multiplies: bool,  # noqa: FBT001
) -> Schedule:
    found = candidates(g, backend, dtype, settings)
    able = _choices(found, algorithm)

    def predicted(algorithm: str) -> Tiled:
        return _tiled(_choices(found, algorithm), backend, g, dtype, algorithm, settings, multiplies=multiplies)

    if backend.chunked:
        settings = settings._replace(tuning=None)  # a task on another machine does not measure
        run = partial(computed, algorithm, settings, multiplies)
        identity = (algorithm, settings._replace(threads=None), multiplies)  # threads change no result
        return Chunked(backend, g, dtype, backend.accumulator(dtype), run, identity)
    if settings.tuning is None or algorithm != "auto" or not multiplies or g.is_empty:
        return predicted(algorithm)
    choices = {}
    for candidate in found:
        if candidate.name in able and candidate.cost <= PROMISING * found[0].cost:
            with suppress(WorkspaceError):
                choices[candidate.name] = predicted(candidate.name)
    if len(choices) < 2:
        return predicted(algorithm)
    others = ", ".join(f"{name} {value}" for name, value in settings._asdict().items() if name != "tuning")
    return Tuned(backend, g, dtype, backend.accumulator(dtype), settings.tuning, choices, others)


#: The same, remembered for the parts of arrays in chunks.
_of_part = lru_cache(maxsize=1024)(_scheduled)


def _tiled(
    able: list[str],
    backend: Backend,
    g: Geometry,
    dtype: DType,
    algorithm: str,
    settings: Settings,
    *,
    multiplies: bool,
) -> Tiled:
    """The best algorithm that fits, with all that may take its place in one function or the other."""
    schedule = _first_that_fits(able, backend, g, dtype, settings, multiplies=multiplies)
    if schedule.algorithm.foreign:
        others = able[1 + able.index(schedule.algorithm.name) :]
        if others:
            with suppress(WorkspaceError):
                otherwise = _tiled(others, backend, g, dtype, algorithm, settings, multiplies=multiplies)
                return replace(schedule, otherwise=otherwise)
        return schedule
    reflected = g.reflected() if multiplies else None
    if reflected is None or reflected.is_empty:
        return schedule
    if schedule.algorithm.is_symmetric(backend) and schedule.input_tiles[0].geometry.pixels == g.pixels:
        return schedule  # tiles of whole images share nothing
    with suppress(ValueError):  # what cannot be reflected, or not within the workspace, is folded back
        able = _choices(candidates(reflected, backend, dtype, settings), algorithm)
        able = [name for name in able if not ALGORITHMS[name].foreign]
        reflection = _first_that_fits(able, backend, reflected, dtype, settings)
        reflecting = REFLECTING * math.prod(g.w_shape)
        if reflection.algorithm.traffic(reflected) + reflecting <= FOLDING * schedule.algorithm.traffic(g):
            return replace(schedule, reflection=reflection)
    return schedule


def candidates(g: Geometry, backend: Backend, dtype: DType, settings: Settings) -> tuple[Candidate, ...]:
    """Every algorithm, the cheapest first, those that are out of the question last."""
    found = []
    balance = backend.balance(dtype, settings.precision)
    for name, algorithm in ALGORITHMS.items():
        refusal = algorithm.refusal(g, backend.kind(dtype)) or algorithm.lack(backend, dtype, settings.precision)
        note = None
        if settings.numerics == "strict" and not algorithm.componentwise:
            note = 'its error bound is not componentwise, and `numerics` is "strict"'
        elif name in backend.unproven and settings.tuning is None:
            note = f"it has not been measured on {backend.name}; ask for it by name"
        cost = 0 if refusal else _cost(algorithm, g, backend, balance)
        found.append(Candidate(name, cost, refusal, note))
    return tuple(sorted(found, key=lambda c: (c.refusal is not None, c.note is not None, c.cost)))


def _cost(algorithm: Algorithm, g: Geometry, backend: Backend, balance: int) -> int:
    """The predicted time of a forward pass, in multiply-adds."""
    return algorithm.work(g, backend, balance) + balance * algorithm.traffic(g)


def _choices(found: tuple[Candidate, ...], algorithm: str) -> list[str]:
    """The algorithms that may serve, the best first."""
    if algorithm == "auto":
        names = [c.name for c in found if c.refusal is None and c.note is None]
        if names:
            return names
        reasons = "; ".join(f"{c.name}: {c.refusal or c.note}" for c in found)
        msg = f"no `algorithm` can serve this convolution: {reasons}"
        raise ValueError(msg)
    for candidate in found:
        if candidate.name == algorithm:
            if candidate.refusal is None:
                return [algorithm]
            msg = f"`algorithm` {algorithm!r} cannot serve this convolution: {candidate.refusal}"
            raise ValueError(msg)
    msg = f"`algorithm` must be one of {('auto', *ALGORITHMS)}, got {algorithm!r}"
    raise ValueError(msg)


class WorkspaceError(ValueError):
    """The workspace has no room for one tile of an algorithm, which takes `least` bytes."""

    def __init__(self, least: int, given: int | None) -> None:
        super().__init__(f"`workspace` must be at least {least} bytes for this convolution, got {given}")
        self.least = least


def _first_that_fits(
    names: list[str], backend: Backend, g: Geometry, dtype: DType, settings: Settings, *, multiplies: bool = True
) -> Tiled:
    """The best algorithm that the workspace has room for; or the error of the one that is content with least."""
    errors = []
    for name in names:
        try:
            return _cut(ALGORITHMS[name], backend, g, dtype, settings, multiplies=multiplies)
        except WorkspaceError as error:
            errors.append(error)
    raise min(errors, key=lambda error: error.least)


def _cut(
    algorithm: Algorithm,
    backend: Backend,
    g: Geometry,
    dtype: DType,
    settings: Settings,
    *,
    multiplies: bool,
) -> Tiled:
    """Cut the work into tiles that fit the workspace and the caches, never so that the number of threads matters."""
    algorithm = algorithm.fitted(g, backend.kind(dtype))
    accumulator = backend.accumulator(dtype)
    operand = backend.operand(dtype) if algorithm.takes_half else accumulator
    itemsize = backend.itemsize(accumulator)
    filters = itemsize * algorithm.filters(g)

    narrower = itemsize - backend.itemsize(operand)

    def cost(part: Geometry, *, forward: bool = False, adjoint: bool = False) -> int:
        written_out = 0
        if part.pad_mode != "constant":
            part = part.extended()
            written_out = 3 * math.prod(part.x_shape)
        if multiplies:
            scratch = (algorithm.forward_scratch if forward else algorithm.scratch)(part, backend)
            halves = 0 if adjoint else algorithm.halves(part, backend)
        else:
            scratch = backend.spare(part) + (math.prod(part.columns_shape) if operand != dtype else 0)
            halves = 0
        return itemsize * (scratch + written_out) - narrower * halves

    forward_cost, adjoint_cost = partial(cost, forward=True), partial(cost, adjoint=True)

    def border_cost(part: Geometry) -> int:
        return cost(part, adjoint=True) + 3 * itemsize * math.prod(part.x_shape)

    predicted = _cost(algorithm, g, backend, backend.balance(dtype, settings.precision))
    shared = predicted * backend.slowness(accumulator) >= SHARED
    whole = g.largest("outputs", (g.batch, *g.out))  # as the tiler judges it
    target = backend.tile_size(algorithm.name, g, dtype, cost(whole), shared=shared)
    target = max(target, itemsize * algorithm.least_tile(whole, backend))
    # A tile of the weight gradient holds its own result, and adds it to a sum; an input gradient whose padding is added
    # to it afterwards is kept in the wider dtype until then.
    fixed = 2 * filters
    if g.pad_mode != "constant" and accumulator != dtype:
        fixed += itemsize * math.prod(g.x_shape)
    room = math.inf if settings.workspace is None else settings.workspace - fixed
    target = min(target, room)
    tiles = g.tiles("outputs", target, forward_cost, algorithm.grain(g))
    weight_tiles = g.tiles("outputs", target, cost, algorithm.grain(g))
    input_tiles = g.tiles("inputs", target, adjoint_cost)
    while input_tiles.repetition > REPETITION and 0 < 2 * target <= min(room, MOST_TILE):
        target *= 2
        input_tiles = g.tiles("inputs", target, adjoint_cost)
    largest = max(forward_cost(tiles.largest), cost(weight_tiles.largest), adjoint_cost(input_tiles.largest))
    if g.pad_mode != "constant":  # the tiles of the padding are cut until they are no larger than this
        one = g.extended().largest("inputs", [min(1, g.batch), *(1 for _ in g.axes)])
        largest = max(largest, border_cost(one))
    if largest > room:
        raise WorkspaceError(fixed + largest, settings.workspace)
    if settings.workspace is None:
        limit, lanes = 1024, LANE_BYTES // max(1, filters)
    else:
        limit = max(1, (settings.workspace - fixed + filters) // max(1, largest + filters))
        lanes = (settings.workspace - limit * (largest + filters)) // max(1, filters)
    limit = limit if shared else 1
    return Tiled(
        algorithm=algorithm,
        backend=backend,
        geometry=g,
        dtype=dtype,
        operand=operand,
        accumulator=accumulator,
        team=Team(settings.threads, limit, g.macs >= HEAVY, largest),
        lanes=min(max(1, lanes), LANES),
        workspace=fixed + largest,
        tiles=_kept(tiles),
        input_tiles=_kept(input_tiles),
        weight_tiles=_kept(weight_tiles),
        find_borders=partial(g.borders, largest, border_cost),
    )


def _kept(tiles: Sequence[Tile]) -> Sequence[Tile]:
    return tuple(tiles) if len(tiles) <= KEPT else tiles


def _result_dtype(backend: Backend, dtypes: tuple[tuple[str, DType], ...], wanted: DType | None) -> DType:
    """The dtype of the result; TypeError for what cannot be multiplied, or not without a loss."""
    given = ", ".join(f"`{name}` {dtype}" for name, dtype in dtypes)
    kinds = {backend.kind(dtype) for _, dtype in dtypes}
    if None in kinds:
        msg = f"arrays must be of an integer, real or complex floating dtype, got {given}"
        raise TypeError(msg)
    if len(kinds) > 1 and "integer" in kinds:
        msg = f"integers and floating-point numbers do not mix, got {given}: convert one side"
        raise TypeError(msg)
    common = _common(backend, *(dtype for _, dtype in dtypes))
    if common is None:
        msg = f"the dtypes must have a common one, got {given}"
        raise TypeError(msg)
    if "integer" in kinds and backend.kind(common) != "integer":
        msg = f"the dtypes must have a common integer dtype, got {given}"
        raise TypeError(msg)
    if wanted is None:
        return common
    wanted = backend.to_dtype(wanted)
    if backend.kind(wanted) != backend.kind(common) or _common(backend, common, wanted) != wanted:
        msg = f"`dtype` must be able to hold {common}, the common dtype of {given}, got {wanted}"
        raise TypeError(msg)
    return wanted


def _common(backend: Backend, *dtypes: DType) -> DType | None:
    """The dtype that all of these promote to; None where the library has none."""
    try:
        return backend.xp.result_type(*dtypes)
    except (TypeError, RuntimeError):
        return None
