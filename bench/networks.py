"""The convolutions of known networks, drawn at random: ``python -m bench.networks`` times xconv beside PyTorch.

Nobody can tune to a suite that each run draws anew. Its seed is in the command that runs the same again.
"""

import argparse
import json
import random
import secrets
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from . import report
from .cases import CONV, OPERATIONS, Case
from .measure import Settings, add_options, measure
from .text import markdown, number

PEER = "torch"
#: xconv's time over the peer's: in geometric mean, and at most, but for depthwise layers.
GOAL, WORST = 0.8, 1.5
#: Images at once. Where a forward pass has more multiply-adds, or elements, than that, it gets one.
BATCHES, MOST_MULTIPLY_ADDS, MOST_ELEMENTS = (1, 8), 12e9, 2**25


class Layer(NamedTuple):
    """A convolution whose axes are all alike."""

    #: How often the network has it.
    times: int
    #: Length of an axis of the input.
    size: int
    channels: int
    filters: int
    kernel: int
    stride: int = 1
    groups: int = 1
    dilation: int = 1

    @property
    def padding(self) -> int:
        """As keeps the size, but for the stride; patches that do not overlap, and causal filters, have none."""
        return self.kernel // 2 if self.kernel % 2 else 0

    def case(self, network: str, batch: int = 1, *, channels_last: bool = False) -> Case:
        """What is timed; its name says all."""
        rank = RANKS.get(network, 2)
        case = Case(
            network,
            (batch, self.channels, *(self.size,) * rank),
            (self.filters, self.channels // self.groups, *(self.kernel,) * rank),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            channels_last,
            operations=CONV,
        )
        return replace(case, name=f"{network} {case.label}")


#: The others are of images.
RANKS = {"unet3d": 3, "wavenet": 1}

#: Every layer once, in the order in which it first occurs; the numbers are those of `Layer`.
#: - Networks that classify see images of 224x224 pixels. What follows their pooling, and the branches of EfficientNet
#:   that see one pixel (squeeze and excitation), are products of matrices, and left out.
#: - Layers with a stride have half a kernel of zeros on both sides, where TensorFlow's "same" may have fewer in front.
#: - ResNet-50 has its strides in the 3x3 layers, as most of its implementations.
#: - The U-Nets keep their sizes, on 256x256 pixels and 48x48x48 voxels. Their up-convolutions are transposed, so here
#:   is what they are the gradient of: a layer from their result to their input.
#: - WaveNet is a second of sound; the samples that a causal filter sees before it are part of the input. Its widths,
#:   which the paper leaves open, are 64, and 256 of what skips; the filter and its gate are one layer.
NETWORKS: dict[str, tuple[Layer, ...]] = {
    network: tuple(Layer(*row) for row in rows)
    for network, rows in {
        # He et al. 2016
        "resnet50": (
            (1, 224, 3, 64, 7, 2),
            *((1, 56, 64, 64, 1), (3, 56, 64, 64, 3), (4, 56, 64, 256, 1), (2, 56, 256, 64, 1)),
            *((1, 56, 256, 128, 1), (1, 56, 128, 128, 3, 2), (1, 56, 256, 512, 1, 2)),
            *((4, 28, 128, 512, 1), (3, 28, 512, 128, 1), (3, 28, 128, 128, 3)),
            *((1, 28, 512, 256, 1), (1, 28, 256, 256, 3, 2), (1, 28, 512, 1024, 1, 2)),
            *((6, 14, 256, 1024, 1), (5, 14, 1024, 256, 1), (5, 14, 256, 256, 3)),
            *((1, 14, 1024, 512, 1), (1, 14, 512, 512, 3, 2), (1, 14, 1024, 2048, 1, 2)),
            *((3, 7, 512, 2048, 1), (2, 7, 2048, 512, 1), (2, 7, 512, 512, 3)),
        ),
        # Sandler et al. 2018
        "mobilenetv2": (
            (1, 224, 3, 32, 3, 2),
            *((1, 112, 32, 32, 3, 1, 32), (1, 112, 32, 16, 1), (1, 112, 16, 96, 1), (1, 112, 96, 96, 3, 2, 96)),
            *((1, 56, 96, 24, 1), (2, 56, 24, 144, 1), (1, 56, 144, 144, 3, 1, 144), (1, 56, 144, 24, 1)),
            (1, 56, 144, 144, 3, 2, 144),
            *((1, 28, 144, 32, 1), (3, 28, 32, 192, 1), (2, 28, 192, 192, 3, 1, 192), (2, 28, 192, 32, 1)),
            (1, 28, 192, 192, 3, 2, 192),
            *((1, 14, 192, 64, 1), (4, 14, 64, 384, 1), (4, 14, 384, 384, 3, 1, 384), (3, 14, 384, 64, 1)),
            *((1, 14, 384, 96, 1), (3, 14, 96, 576, 1), (2, 14, 576, 576, 3, 1, 576), (2, 14, 576, 96, 1)),
            (1, 14, 576, 576, 3, 2, 576),
            *((1, 7, 576, 160, 1), (3, 7, 160, 960, 1), (3, 7, 960, 960, 3, 1, 960), (2, 7, 960, 160, 1)),
            *((1, 7, 960, 320, 1), (1, 7, 320, 1280, 1)),
        ),
        # Tan and Le 2019
        "efficientnet-b0": (
            (1, 224, 3, 32, 3, 2),
            *((1, 112, 32, 32, 3, 1, 32), (1, 112, 32, 16, 1), (1, 112, 16, 96, 1), (1, 112, 96, 96, 3, 2, 96)),
            *((1, 56, 96, 24, 1), (2, 56, 24, 144, 1), (1, 56, 144, 144, 3, 1, 144), (1, 56, 144, 24, 1)),
            (1, 56, 144, 144, 5, 2, 144),
            *((1, 28, 144, 40, 1), (2, 28, 40, 240, 1), (1, 28, 240, 240, 5, 1, 240), (1, 28, 240, 40, 1)),
            (1, 28, 240, 240, 3, 2, 240),
            *((1, 14, 240, 80, 1), (3, 14, 80, 480, 1), (2, 14, 480, 480, 3, 1, 480), (2, 14, 480, 80, 1)),
            *((1, 14, 480, 480, 5, 1, 480), (1, 14, 480, 112, 1), (3, 14, 112, 672, 1), (2, 14, 672, 672, 5, 1, 672)),
            *((2, 14, 672, 112, 1), (1, 14, 672, 672, 5, 2, 672)),
            *((1, 7, 672, 192, 1), (4, 7, 192, 1152, 1), (3, 7, 1152, 1152, 5, 1, 1152), (3, 7, 1152, 192, 1)),
            *((1, 7, 1152, 1152, 3, 1, 1152), (1, 7, 1152, 320, 1), (1, 7, 320, 1280, 1)),
        ),
        # Liu et al. 2022
        "convnext-t": (
            (1, 224, 3, 96, 4, 4),
            *((3, 56, 96, 96, 7, 1, 96), (3, 56, 96, 384, 1), (3, 56, 384, 96, 1), (1, 56, 96, 192, 2, 2)),
            *((3, 28, 192, 192, 7, 1, 192), (3, 28, 192, 768, 1), (3, 28, 768, 192, 1), (1, 28, 192, 384, 2, 2)),
            *((9, 14, 384, 384, 7, 1, 384), (9, 14, 384, 1536, 1), (9, 14, 1536, 384, 1), (1, 14, 384, 768, 2, 2)),
            *((3, 7, 768, 768, 7, 1, 768), (3, 7, 768, 3072, 1), (3, 7, 3072, 768, 1)),
        ),
        # Simonyan and Zisserman 2015
        "vgg16": (
            *((1, 224, 3, 64, 3), (1, 224, 64, 64, 3), (1, 112, 64, 128, 3), (1, 112, 128, 128, 3)),
            *((1, 56, 128, 256, 3), (2, 56, 256, 256, 3), (1, 28, 256, 512, 3), (2, 28, 512, 512, 3)),
            (3, 14, 512, 512, 3),
        ),
        # Ronneberger et al. 2015
        "unet": (
            *((1, 256, 1, 64, 3), (2, 256, 64, 64, 3), (1, 128, 64, 128, 3), (2, 128, 128, 128, 3)),
            *((1, 64, 128, 256, 3), (2, 64, 256, 256, 3), (1, 32, 256, 512, 3), (2, 32, 512, 512, 3)),
            *((1, 16, 512, 1024, 3), (1, 16, 1024, 1024, 3), (1, 32, 512, 1024, 2, 2), (1, 32, 1024, 512, 3)),
            *((1, 64, 256, 512, 2, 2), (1, 64, 512, 256, 3), (1, 128, 128, 256, 2, 2), (1, 128, 256, 128, 3)),
            *((1, 256, 64, 128, 2, 2), (1, 256, 128, 64, 3), (1, 256, 64, 2, 1)),
        ),
        # Cicek et al. 2016
        "unet3d": (
            *((1, 48, 3, 32, 3), (1, 48, 32, 64, 3), (1, 24, 64, 64, 3), (1, 24, 64, 128, 3)),
            *((1, 12, 128, 128, 3), (1, 12, 128, 256, 3), (1, 6, 256, 256, 3), (1, 6, 256, 512, 3)),
            *((1, 12, 512, 512, 2, 2), (1, 12, 768, 256, 3), (1, 12, 256, 256, 3)),
            *((1, 24, 256, 256, 2, 2), (1, 24, 384, 128, 3), (1, 24, 128, 128, 3)),
            *((1, 48, 128, 128, 2, 2), (1, 48, 192, 64, 3), (1, 48, 64, 64, 3), (1, 48, 64, 3, 1)),
        ),
        # van den Oord et al. 2016
        "wavenet": (
            (1, 16001, 256, 64, 2),
            *((4, 16000 + 2**i, 64, 128, 2, 1, 1, 2**i) for i in range(10)),
            *((40, 16000, 64, 64, 1), (40, 16000, 64, 256, 1), (2, 16000, 256, 256, 1)),
        ),
    }.items()
}


def draw(count: int, seed: int, networks: Iterable[str]) -> list[Case]:
    """Draw some of the networks' layers, each at most once, with a batch and a layout."""
    rng, layers = random.Random(seed), [(network, layer) for network in networks for layer in NETWORKS[network]]
    drawn = []
    for network, layer in rng.sample(layers, min(count, len(layers))):
        batch, channels_last = rng.choice(BATCHES), rng.random() < 0.25
        case = layer.case(network, batch, channels_last=channels_last)
        if case.flops("forward") > 2 * MOST_MULTIPLY_ADDS or case.elements("forward") > MOST_ELEMENTS:
            case = layer.case(network, channels_last=channels_last)
        drawn.append(case)
    return drawn


def table(found: dict[str, Any]) -> str:
    """Write the run as Markdown."""
    note = (
        f"“÷ {PEER}” is the time of xconv divided by that of {PEER}: below 1, xconv is faster. Times are medians ± "
        "half the interquartile range. The layers are drawn by a seed; the command above draws the same again. The "
        "algorithm is that of the forward pass."
    )
    parts = [report.heading(found, "Layers of known networks: timings"), note, summary(found)]
    parts += [_means(found), report.beside(found, PEER), report.remarks(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(found: dict[str, Any]) -> str:
    """Say how far from the goals a run is, and name the layers that are."""
    results = report.results_of(found)
    every = ((case, o, report.ratio(results, case, o, PEER)) for case in found["cases"] for o in CONV)
    ratios = sorted((ratio, case, o) for case, o, ratio in every if ratio is not None)
    if not ratios:
        return f"Nothing was timed beside {PEER}."
    mean, count = report.geometric_mean(results, found["cases"], CONV, PEER)
    far = [row for row in reversed(ratios) if row[0] > WORST and row[1] not in found["depthwise"]]
    worst, *lines = [f"{number(r)}: {case}, {OPERATIONS[o].title}" for r, case, o in (ratios[-1], *far)]
    text = f"""\
- geometric mean of {count} ratios to {PEER}: {number(mean)}; the goal is {GOAL}
- the largest is {worst}
- above {WORST} and not depthwise: {len(far) or "none"}"""
    return "".join((text, *(f"\n  - {line}" for line in lines)))


def _means(found: dict[str, Any]) -> str:
    results, cases = report.results_of(found), list(found["cases"])
    groups = {"all": cases, "without depthwise": [case for case in cases if case not in found["depthwise"]]}
    groups |= {network: [case for case in cases if case.split()[0] == network] for network in NETWORKS}
    together, rows = (CONV, *((operation,) for operation in CONV)), []
    for title, chosen in groups.items():
        means = (report.geometric_mean(results, chosen, operations, PEER)[0] for operations in together)
        rows.append([title, str(len(chosen)), *map(number, means)])
    head = [f"geometric mean of ÷ {PEER}", "layers", "all three", *(OPERATIONS[o].title for o in CONV)]
    return markdown(head, [row for row in rows if row[1] != "0"], left=1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description="Time layers of known networks.")
    parser.add_argument("--seed", type=int, help="of the draw (default: another one every time)")
    parser.add_argument("--count", type=int, default=40, help="how many layers (default: 40)")
    parser.add_argument("--networks", help=f"some of {','.join(NETWORKS)}", default=",".join(NETWORKS))
    parser.add_argument("--threads", type=int, default=2, help="for both (default: 2)")
    add_options(parser, rounds=3, seconds=0.1)
    arguments = parser.parse_args()
    networks = arguments.networks.split(",")
    if unknown := [network for network in networks if network not in NETWORKS]:
        parser.error(f"{', '.join(unknown)}: not among {', '.join(NETWORKS)}")
    seed = secrets.randbelow(2**32) if arguments.seed is None else arguments.seed
    drawn = draw(arguments.count, seed, networks)
    some = "" if networks == list(NETWORKS) else f" --networks {arguments.networks}"
    settings = Settings(
        cases=tuple(drawn),
        peers=(report.OURS, PEER),
        threads=arguments.threads,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        program=f"python -m bench.networks --seed {seed} --count {len(drawn)}{some}",
        memory=False,
    )
    print(settings.command, flush=True)
    depthwise = [case.name for case in drawn if case.groups == case.x_shape[1] > 1]
    found = measure(settings) | {"seed": seed, "depthwise": depthwise}
    path = arguments.output / "networks.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(found))
    print(summary(found))
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
