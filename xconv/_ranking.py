"""The plans of one function: which algorithms may serve, in which tiles, within which memory, and at what cost.

The cost is that of a plan as it will run: of every tile, with what it reads that others read as well, and of what is
done once for all of them. It counts what the primitives take that an algorithm is made of (`primitives.Costs`).
"""

import cmath
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import product
from operator import itemgetter
from typing import NamedTuple

from ._arguments import MOST_BYTES, in_bytes
from ._config import Settings
from ._geometry import Geometry, Tile
from ._tiler import Tiling, borders, tiles
from ._tuning import Tuning
from ._typing import DType, Function
from .algorithms import Algorithm
from .backends import MIB, Backend
from .primitives import Costs, Team
from .schedules import STRAYING, WAYS, Tiled

#: Multiply-adds of a call that is worth a hold on the BLAS.
HEAVY = 2**19
#: The predicted cost, in multiply-adds of float32, of a call that is worth more than one thread: threads wait for each
#: other between any two operations. And that of a share of it: between two tiles, the caches forget what Python runs.
SHARED, SHARE = 2**25, 2**26
#: Tiles that cost so many times as much as the whole in one piece are tried larger, each time by this factor, up to
#: this size; and taken where that is at least so much cheaper, since what leaves the caches is slower than predicted.
WASTE, GROWTH, MOST_TILE, GAIN = 1.3, 8, 256 * MIB, 0.8
#: What is done once for all tiles costs so many times as much where these are shared: all threads wait for it.
WAITING = 1.8
#: So few tiles would leave a thread without work; and others take so much more than in proportion.
ODD, SLACK = {1, 3, 5, 7}, (1.1, 1.4)
#: So many tiles are kept with a plan; of more than that, each is made when its turn comes.
KEPT = 64
#: The most memory for partial sums of a weight gradient.
LANES, LANE_BYTES = 8, 64 * MIB


class Problem(NamedTuple):
    """What is to be computed, and under which conditions."""

    backend: Backend
    geometry: Geometry
    dtype: DType
    settings: Settings
    algorithm: str = "auto"
    #: The dtypes of the arrays: what is of another one than what is multiplied is cast tile by tile.
    given: frozenset[DType] = frozenset()
    #: The order in which the filters' axes lie.
    w_layout: str = "oi..."

    @property
    def tuning(self) -> Tuning | None:
        """The record of measured times to choose by."""
        tuning = self.settings.tuning
        return None if tuning is None or self.algorithm != "auto" or self.geometry.is_empty else tuning

    @property
    def costs(self) -> Costs:
        return self.backend.costs(self.dtype, self.settings.precision)

    def call(self, function: Function, place: str) -> str:
        """What is measured, as a record names it."""
        g = self.geometry.linear() if function == "input_grad" else self.geometry
        axes = "; ".join(f"{a.size}+{a.lo}+{a.hi} by {a.kernel}, steps {a.stride} and {a.dilation}" for a in g.axes)
        layout = "channels last" if g.channels_last else "channels first"
        counts = f"{g.batch} of {g.c_in} to {g.c_out} in {g.groups}"
        others = ", ".join(f"{name} {value}" for name, value in self.settings._asdict().items() if name != "tuning")
        mode = g.pad_mode
        if g.pad_value:
            mode = "filled" if cmath.isfinite(g.pad_value) else "filled with what is not finite"
        if self.w_layout != "oi...":
            layout += f", filters {self.w_layout}"
        how = f"{self.backend.name} {self.dtype}, {counts}, {axes}, {mode}, {layout}, {others}"
        return f"{function} on {place}, {how}"


class Candidate(NamedTuple):
    """An algorithm with its predicted cost in multiply-adds, and why it cannot serve or is not to be chosen."""

    name: str
    cost: int
    refusal: str | None
    note: str | None


class Choice(NamedTuple):
    """An algorithm for a function, by one of the ways to it."""

    way: type[Tiled]
    algorithm: Algorithm
    geometry: Geometry
    refusal: str | None
    note: str | None

    def cost(self, part: Geometry, costs: Costs) -> float:
        """Predicted time of a part in one piece."""
        written_out = 0
        if part.is_filled:
            part = part.extended()
            written_out = 3 * math.prod(part.x_shape)
        return self.way.cost_of(self.algorithm, part, costs) + costs.moved(written_out, 4)

    def whole(self, costs: Costs) -> float:
        """Predicted time of everything in one piece: no tiles are faster."""
        return self.cost(self.geometry, costs) + self.way.once(self.algorithm, self.geometry, costs)


def candidates(problem: Problem, function: Function) -> tuple[Candidate, ...]:
    """Every algorithm for a function, the cheapest first, those that are out of the question last."""
    found = []
    for choice in _choices(problem, function):
        name, cost = choice.way.label(choice.algorithm), 0
        refusal = choice.refusal
        if refusal is None:
            try:
                cost = round(cut(problem, choice).cost)
            except WorkspaceError as error:
                refusal = str(error)
        found.append(Candidate(name, cost, refusal, choice.note))
    return tuple(sorted(found, key=lambda c: (c.refusal is not None, c.note is not None, c.cost)))


def plans(problem: Problem, function: Function) -> Iterator[Tiled]:
    """How a function may be run, the cheapest first; each is cut into tiles when its turn comes."""
    costs, errors, found = problem.costs, [], False
    waiting: list[tuple[float, int, Choice | Tiled]] = [
        (choice.whole(costs), i, choice) for i, choice in enumerate(able(problem, function))
    ]
    heapify(waiting)
    while waiting:
        cost, i, next_one = heappop(waiting)
        if isinstance(next_one, Tiled):
            found = True
            yield next_one
            continue
        try:
            tiled = cut(problem, next_one)
        except WorkspaceError as error:
            errors.append(error)
        else:
            heappush(waiting, (max(cost, tiled.cost), i, tiled))
    if not found:
        smallest = min(errors, key=lambda error: error.least)
        if problem.settings.workspace is not None:
            raise smallest
        msg = f"the temporary memory of this call must fit into memory: {smallest}, so take smaller sizes"
        raise MemoryError(msg)


def _choices(problem: Problem, function: Function) -> Iterator[Choice]:
    """Every algorithm by every way."""
    backend, whole, dtype, settings = problem[:4]
    kind = backend.kind(dtype)
    confined = _is_strict(problem) and not backend.sees_numbers
    for way in WAYS[function]:
        g = way.geometry_of(whole)
        if g is None:
            continue
        why = None if cmath.isfinite(g.pad_value) else "`pad_value` is not finite"
        why = '`numerics` is "strict"' if settings.numerics == "strict" else why
        for name, algorithm in backend.algorithms.items():
            refusal = algorithm.refusal(g, kind) or algorithm.lack(backend, dtype, settings.precision)
            if not refusal and confined and way.strays(algorithm, g):
                refusal = f'it {STRAYING}, and `numerics` is "strict"'
            if refusal and way is not WAYS[function][-1]:
                continue  # the last way says why
            note = None
            if why and not algorithm.is_componentwise(dtype, settings.precision):
                note = f"its error bound is not componentwise, and {why}"
            elif name in backend.unproven and settings.tuning is None:
                note = f"it has not been found to be fast on {backend.name}; ask for it by name"
            fitted = algorithm if refusal else algorithm.fitted(g, kind)
            yield Choice(way, fitted, g, refusal, note)


def _is_strict(problem: Problem) -> bool:
    """Whether NaN and infinity must stay in the windows that see them."""
    return problem.settings.numerics == "strict" and problem.backend.kind(problem.dtype) != "integer"


def able(problem: Problem, function: Function) -> list[Choice]:
    """The choices that may serve, as they were asked for; ValueError where there are none."""
    asked = problem.algorithm
    known = ("auto", *problem.backend.algorithms)
    if asked not in known:
        msg = f"`algorithm` must be one of {known} on {problem.backend.name}, got {asked!r}"
        raise ValueError(msg)
    found = [choice for choice in _choices(problem, function) if asked in {"auto", choice.algorithm.name}]
    able = [c for c in found if c.refusal is None and (c.note is None or asked != "auto")]
    if able:
        return able
    if asked != "auto":
        msg = f"`algorithm` {asked!r} cannot serve this convolution: {found[-1].refusal}"
        raise ValueError(msg)
    reasons = "; ".join(f"{choice.algorithm.name}: {choice.refusal or choice.note}" for choice in found)
    msg = f"no `algorithm` can serve this convolution: {reasons}"
    raise ValueError(msg)


class WorkspaceError(ValueError):
    """The workspace has no room for one tile of an algorithm, which takes `least` bytes."""

    def __init__(self, least: int, given: int | None) -> None:
        needed = f"`workspace` must be at least {least} bytes for this call, got {given}"
        super().__init__(f"it takes {in_bytes(least)}" if given is None else needed)
        self.least = least


class Memory(NamedTuple):
    """Bytes that the parts of a plan take."""

    choice: Choice
    costs: Costs
    #: Whether what tiles read is cast to another dtype, to be multiplied.
    casts: bool
    #: Whether sums have another dtype than the result.
    widens: bool
    #: Bytes of what is multiplied, and of a sum.
    narrow: int
    itemsize: int

    def tile(self, part: Geometry) -> int:
        """Temporary memory of a tile."""
        way, algorithm = self.choice.way, self.choice.algorithm
        written_out = 0
        if part.is_filled:
            part = part.extended()
            written_out = 3 * math.prod(part.x_shape)
        scratch = way.scratch(algorithm, part, self.costs)
        if self.casts:
            written_out += way.reads(part)
        narrower = self.itemsize - self.narrow
        halves = algorithm.halves(way.function, part, self.costs)
        return self.itemsize * (scratch + written_out) - narrower * halves

    def border(self, part: Geometry) -> int:
        """The same of a part of the padding, which is not read from the array but added to it."""
        return self.tile(part) + 3 * self.itemsize * math.prod(part.x_shape)

    @property
    def filters(self) -> int:
        return self.itemsize * self.choice.way.filters(self.choice.algorithm, self.choice.geometry)

    @property
    def fixed(self) -> int:
        """What is there for as long as a call: a weight gradient's tile holds its own result and adds it to a sum."""
        g, fixed = self.choice.geometry, 2 * self.filters
        if g.pad_mode != "constant" and self.widens:
            fixed += self.itemsize * math.prod(g.x_shape)  # of which the padding's gradient is added in the wider dtype
        return fixed


def cut(problem: Problem, choice: Choice) -> Tiled:
    """Cut the work into tiles that fit the workspace and the caches, never so that the number of threads matters."""
    backend, dtype, settings = problem.backend, problem.dtype, problem.settings
    way, algorithm, g = choice.way, choice.algorithm, choice.geometry
    accumulator = backend.accumulator(dtype)
    operand = backend.operand(dtype) if algorithm.takes_half else accumulator
    costs, sizes = problem.costs, (backend.itemsize(operand), backend.itemsize(accumulator))
    casts = any(one != operand for one in (dtype, *problem.given))
    memory = Memory(choice, costs, casts, accumulator != dtype, *sizes)
    predicted = choice.whole(costs)
    shares = max(2, round(predicted / SHARE)) if backend.parallel and predicted >= SHARED else 1
    whole = g.largest("outputs", (g.batch, *g.out))  # as the tiler judges it
    target = backend.tile_size(algorithm.name, g, dtype, memory.tile(whole), shares)
    target = max(target, memory.itemsize * algorithm.least_tile(whole, costs))
    fixed, filters = memory.fixed, memory.filters
    room = (MOST_BYTES if settings.workspace is None else settings.workspace) - fixed
    tiling, cost = _tiling(choice, costs, memory, min(target, room), room, shares)
    largest = memory.tile(tiling.largest)
    if g.pad_mode != "constant" and way.over == "inputs":  # the padding is cut until its tiles are no larger than this
        flat = g.extended()
        one, every = ([min(1, g.batch), *(1 for _ in g.axes)], (g.batch, *flat.size))
        least, most = (memory.border(flat.largest("inputs", steps)) for steps in (one, every))
        largest = max(largest, least, int(min(target, room, most)))
    if largest > room:
        raise WorkspaceError(fixed + largest, settings.workspace)
    if settings.workspace is None:
        limit, lanes = 1024, LANE_BYTES // max(1, filters)
    else:
        limit = max(1, (settings.workspace - fixed + filters) // max(1, largest + filters))
        lanes = (settings.workspace - limit * (largest + filters)) // max(1, filters)
    return way(
        backend=backend,
        geometry=g,
        algorithm=algorithm,
        dtype=dtype,
        operand=operand,
        accumulator=accumulator,
        tiles=_kept(tiling),
        team=Team(settings.threads, limit if shares > 1 else 1, g.macs >= HEAVY, largest),
        lanes=min(max(1, lanes), LANES),
        workspace=fixed + largest,
        cost=cost,
        looks=_is_strict(problem) and backend.sees_numbers,
        find_borders=partial(borders, g, largest, memory.border),
    )


def _tiling(
    choice: Choice, costs: Costs, memory: Memory, target: float, room: float, shares: int
) -> tuple[Tiling, float]:
    """The tiles for so many bytes each, or larger ones where that pays, an even number if few; and what they cost."""
    g, over = choice.geometry, choice.way.over
    grain = choice.algorithm.grain(g) if over == "outputs" else None
    once = choice.way.once(choice.algorithm, g, costs) + costs.fresh(memory.filters)
    once *= WAITING if shares > 1 else 1
    whole = choice.cost(g, costs)

    def tried(target: float) -> tuple[float, Tiling]:
        tiling = tiles(g, over, target, memory.tile, grain)
        each = choice.cost(tiling.largest, costs) + costs.fresh(memory.tile(tiling.largest))
        return tiling.weight * each, tiling

    cost, tiling = tried(target)
    most = min(room, MOST_TILE)
    while cost > WASTE * whole and len(tiling) > 1 and target < most >= memory.tile(tiling.largest):
        target = min(max(GROWTH * target, memory.tile(tiling.largest)), most)  # less is no use where nothing fits
        larger_cost, larger = tried(target)
        if larger_cost < GAIN * cost:
            cost, tiling = larger_cost, larger
    if shares > 1 and len(tiling) in ODD:
        found = _even(tried, memory.tile(tiling.largest), len(tiling), room)
        cost, tiling = min(found, key=itemgetter(0), default=(cost, tiling))
    return tiling, once + cost


def _even(
    tried: Callable[[float], tuple[float, Tiling]], size: float, count: int, room: float
) -> Iterator[tuple[float, Tiling]]:
    """An even number of tiles in the place of a few of this size, one less or more; there may be no such number."""
    for even, slack in product((count - 1, count + 1), SLACK):
        if even and (target := slack * size * count / even) <= room:
            found = tried(target)
            if len(found[1]) == even:
                yield found


def _kept(tiles: Sequence[Tile]) -> Sequence[Tile]:
    return tuple(tiles) if len(tiles) <= KEPT else tiles
