"""Fill in what a magnetic resonance scan has left out: a convolution that predicts each sample from its neighbours.

Run it with any array library that is installed::

    python examples/mri.py
    python examples/mri.py --backend cupy

A scanner with several coils samples the Fourier transform of the image, as each coil sees it. Here it takes one of four
samples, and all in the middle: 27%. The coils see the same object, so every sample is a linear combination of those
around it, in all coils. The coefficients come from the middle, and are the kernel of a multi-channel complex
convolution (SPIRiT: Lustig and Pauly, Magnetic Resonance in Medicine 64, 2010). What is missing is chosen by
conjugate gradients so that this holds everywhere: a ``conv`` and a ``conv_input_grad`` in every step. It draws
``examples/out/mri.png`` and takes a few seconds.
"""

import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from _backends import Array, Namespace, arguments, compiled, namespace, to_numpy

import xconv

SIDE, COILS, MIDDLE, TAPS = 192, 8, 28, 5
STEPS = 30
#: What is added to the Gram matrix of the calibration, as a part of its mean eigenvalue.
RIDGE = 1e-4
NOISE = 2e-3
#: The error may not be more than this part of what it is with zeros for the missing samples.
REQUIRED = 0.2
#: Brightness, centre, half axes and angle (degrees) of the ellipses of a head, from -1 to 1 across the image.
ELLIPSES = (
    (0.9, 0.00, 0.00, 0.70, 0.90, 0),
    (-0.6, 0.00, 0.01, 0.65, 0.84, 0),
    (0.2, 0.00, 0.05, 0.60, 0.76, 0),
    (0.15, 0.00, -0.30, 0.42, 0.40, 0),
    (-0.4, -0.15, 0.10, 0.08, 0.26, -14),
    (-0.4, 0.15, 0.10, 0.08, 0.26, 14),
    (0.4, 0.26, -0.40, 0.12, 0.08, 30),
    (0.3, 0.36, 0.38, 0.11, 0.07, 40),
    (-0.3, -0.38, -0.28, 0.08, 0.08, 0),
    *((0.4, -0.30 + 0.075 * i, 0.58, 0.006 + 0.003 * i, 0.06, 0) for i in range(9)),
)


def head() -> np.ndarray:
    """The object: a sum of ellipses with edges one pixel wide."""
    down, across = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    image = np.zeros((SIDE, SIDE))
    for brightness, x, y, a, b, degrees in ELLIPSES:
        turn = np.exp(1j * np.deg2rad(degrees))
        z = (across - x + 1j * (-down - y)) / turn
        inside = (1 - np.hypot(z.real / a, z.imag / b)) * min(a, b) * SIDE / 2
        image += brightness * np.clip(inside + 0.5, 0, 1)
    return image


def sensitivities() -> np.ndarray:
    """What each coil of a ring around the head sees, complex and smooth."""
    down, across = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    places = 1.3 * np.exp(2j * np.pi * np.arange(COILS) / COILS)[:, None, None]
    away = across + 1j * down - places
    seen = np.exp(1j * np.angle(away)) / (0.3 + np.abs(away) ** 2)
    return seen / np.sqrt(np.sum(np.abs(seen) ** 2, axis=0))


def scan(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All samples ``(1, coils, side, side)``, with noise, and which of them are taken."""
    coils = head() * sensitivities()
    samples = np.fft.fftshift(np.fft.fft2(coils, norm="ortho"), axes=(-2, -1))
    samples += NOISE * (rng.normal(size=samples.shape) + 1j * rng.normal(size=samples.shape))
    taken = np.zeros((SIDE, SIDE), dtype=bool)
    taken[::2, ::2] = True
    low, high = (SIDE - MIDDLE) // 2, (SIDE + MIDDLE) // 2
    taken[low:high, low:high] = True
    return samples[None].astype(np.complex64), taken


def calibrate(middle: Array, xp: Namespace) -> Array:
    """Filters ``(coils, coils, taps, taps)`` that make zero of the samples: minus one at the sample itself.

    A window of the middle, times the filters, shall be as small as can be. Its columns come from ``im2col``; least
    squares with one coefficient held is a column of the inverse of their Gram matrix.
    """
    columns = xconv.im2col(middle, TAPS)
    a = xp.reshape(columns, (COILS * TAPS**2, -1))
    gram = xp.conj(a) @ a.T
    ridge = RIDGE * xp.real(xp.linalg.trace(gram)) / gram.shape[0]
    inverse = xp.linalg.inv(gram + ridge * xp.eye(gram.shape[0], dtype=gram.dtype))
    centres = inverse[:, TAPS**2 // 2 :: TAPS**2]
    held = xp.linalg.diagonal(centres[TAPS**2 // 2 :: TAPS**2, :])
    return xp.reshape(-(centres / held).T, (COILS, COILS, TAPS, TAPS))


def complete(samples: Array, taken: Array, w: Array, xp: Namespace) -> Array:
    """The samples with those that are not taken chosen so that ``conv(samples, w)`` is smallest, in least squares."""
    options = {"padding": "same", "pad_mode": "wrap"}
    missing = xp.astype(~taken, samples.dtype)

    def normal(z: Array) -> Array:
        return missing * xconv.conv_input_grad(xconv.conv(z, w, **options), w, z.shape, **options)

    normal = compiled(normal, xp)
    return samples + conjugate_gradients(normal, -normal(samples), xp)


def conjugate_gradients(normal: Callable[[Array], Array], right: Array, xp: Namespace) -> Array:
    """Some steps towards ``normal(z) == right``, from zero."""

    def square(a: Array) -> Array:
        return xp.sum(xp.real(a) ** 2 + xp.imag(a) ** 2)

    z, rest, direction = xp.zeros_like(right), right, right
    for _ in range(STEPS):
        image, before = normal(direction), square(rest)
        length = before / xp.sum(xp.real(xp.conj(direction) * image))
        z, rest = z + length * direction, rest - length * image
        direction = rest + square(rest) / before * direction
    return z


def picture(samples: Array) -> np.ndarray:
    """The image of all coils together: the root of the sum of their squares."""
    coils = np.fft.ifft2(np.fft.ifftshift(to_numpy(samples)[0], axes=(-2, -1)), norm="ortho")
    return np.sqrt(np.sum(np.abs(coils) ** 2, axis=0))


def draw(panels: list[tuple[str, np.ndarray, float]], path: Path) -> None:
    """Titles, pictures, and what is white in each of them."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 9.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    for ax, (title, image, white) in zip(axes.flat, panels, strict=True):
        ax.imshow(image, cmap="gray", vmin=0, vmax=white)
        ax.set_title(title, fontsize=15, pad=8)
        ax.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    options = arguments("Reconstruct a magnetic resonance image from 27% of its samples.", "mri.png").parse_args()
    xp = namespace(options.backend)
    full, taken = scan(np.random.default_rng(0))
    start = time.perf_counter()
    samples, mask = xp.asarray(full * taken), xp.asarray(taken)
    edge = (SIDE - MIDDLE) // 2
    w = calibrate(samples[:, :, edge : edge + MIDDLE, edge : edge + MIDDLE], xp)
    reference, zeros, filled = (picture(a) for a in (full, samples, complete(samples, mask, w, xp)))
    seconds = time.perf_counter() - start

    errors = [np.linalg.norm(a - reference) / np.linalg.norm(reference) for a in (zeros, filled)]
    print(f"{taken.mean():.0%} of the samples, {STEPS} steps in {seconds:.1f} s")
    print(f"error: {errors[0]:.1%} with zeros for the others, {errors[1]:.1%} reconstructed")
    white = reference.max()
    panels = [
        ("All samples", reference, white),
        (f"{taken.mean():.0%} of the samples, zeros for the others", zeros, white),
        ("The others reconstructed", filled, white),
        ("Which samples are taken", taken, 1),
        *(
            (f"Error {error:.1%}, shown 10 times as bright", np.abs(image - reference), white / 10)
            for error, image in zip(errors, (zeros, filled), strict=True)
        ),
    ]
    draw(panels, options.output)
    print(f"wrote {options.output}")
    if errors[1] > REQUIRED * errors[0]:
        msg = f"the error is more than {REQUIRED:.0%} of what it was"
        raise SystemExit(msg)


if __name__ == "__main__":
    main()
