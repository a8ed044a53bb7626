"""Run kernels of many geometries under the sanitizers: ``python -m kernels.sanitized [PATTERN SLIP]``."""

import sys
from dataclasses import replace

from kernels.cases import VERBS, case, geometries, mutated
from kernels.cpu import SANITIZERS, Harness


def main(pattern="", slip=""):
    harness = Harness(SANITIZERS)
    special = [
        case(verb, g, ("float32", "int8", "float16")[i % 3], literal=i % 2 == 0, seed=i // 2, scattered=i % 4 > 1)
        for i, g in enumerate(geometries(24, seed=3))
        for verb in VERBS
    ]
    general = [
        case(verb, g, literal=False, seed=i // 2, scattered=i % 3 > 0)
        for i, g in enumerate(geometries(500, seed=4))
        for verb in VERBS
    ]
    cases = special + general
    if pattern:
        cases = [replace(c, kernel=mutated(c.kernel, pattern, slip)) for c in cases[:20]]
    harness.prepare([(c.kernel, c.flats) for c in cases if c.kernel.size])
    for c in cases:
        c.check(harness)


if __name__ == "__main__":
    main(*sys.argv[1:])
