"""Run kernels of many geometries under the sanitizers: ``python -m kernels.sanitized threads|warps PATTERN SLIP``.

For threads, the slip may be left out.
"""

import sys
from dataclasses import replace

from kernels import products
from kernels.cases import POOLING, VERBS, case, even_geometries, geometries, mutated
from kernels.cpu import SANITIZERS, Harness
from kernels.warps import Warps


def threads(pattern="", slip=""):
    harness = Harness(SANITIZERS)
    special = [
        case(verb, g, ("float32", "int8", "float16")[i % 3], literal=i % 2 == 0, seed=i // 2, scattered=i % 4 > 1)
        for i, g in enumerate(geometries(12, seed=3))
        for verb in VERBS
    ]
    general = [
        case(verb, g, literal=False, seed=i // 2, scattered=i % 3 > 0)
        for i, g in enumerate(geometries(300, seed=4))
        for verb in VERBS
    ]
    neighbours = [
        case(verb, g, ("float16", "float32")[i % 2], literal=i % 4 > 0, seed=i, even=True)
        for i, g in enumerate(even_geometries(8, seed=6))
        for verb in VERBS[:4]
    ]
    pooling = [
        case(verb, g, literal=i % 4 == 0, seed=i, scattered=i % 3 > 0, even=i % 2 > 0)
        for i, g in enumerate((*geometries(6, seed=5), *even_geometries(6, seed=5)))
        for verb in POOLING
    ]
    cases = special + general + neighbours + pooling
    if pattern:
        cases = [replace(c, kernel=mutated(c.kernel, pattern, slip)) for c in cases[:20]]
    harness.prepare([(c.kernel, c.flats) for c in cases if c.kernel.size])
    for c in cases:
        c.check(harness)


def warps(pattern, slip):
    """The kernel on tensor cores, as it is and then with the slip."""
    harness = Warps(SANITIZERS)
    cases = list(products.random_cases(14, seed=6))
    some = next(c for c in cases if c.products and "_float16_" in c.product.name)
    wrong = replace(some, products=some.mutated(pattern, slip))
    harness.prepare([p for c in (*cases, wrong) for p in c.products])
    for c in cases:
        c.check(harness)
    sys.stdout.write("no error without the slip\n")
    sys.stdout.flush()
    wrong.check(harness)


if __name__ == "__main__":
    {"threads": threads, "warps": warps}[sys.argv[1]](*sys.argv[2:])
