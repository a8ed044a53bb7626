"""Filter a photograph with xconv: edges, blur and detail.

Run it with any array library that is installed::

    python examples/photo.py
    python examples/photo.py --backend torch

It draws ``examples/out/photo.png``: a photograph that comes with scikit-learn, the strength of its edges (a pair of
Sobel filters), a Gaussian blur (one filter per colour channel: ``groups=3``), and one scale of its detail (a wavelet
"with holes": one small kernel at dilations 1, 2 and 4). All of them reflect the picture at its borders.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from _backends import Array, arguments, namespace, to_numpy
from array_api_compat import array_namespace, device
from sklearn.datasets import load_sample_image

import xconv


def like(x: Array, values: np.ndarray) -> Array:
    """NumPy's `values` as an array of the library, dtype and device of `x`."""
    return array_namespace(x).asarray(values, dtype=x.dtype, device=device(x))


def smooth(x: Array, taps: np.ndarray, dilation: int = 1) -> Array:
    """Every channel of ``x (n, c, height, width)`` with the same symmetric kernel, down and then across."""
    channels = x.shape[1]
    for kernel in ((len(taps), 1), (1, len(taps))):
        w = like(x, np.broadcast_to((taps / np.sum(taps)).reshape(kernel), (channels, 1, *kernel)))
        x = xconv.conv(x, w, padding="same", pad_mode="reflect", groups=channels, dilation=dilation)
    return x


def blur(x: Array, sigma: float = 5.0) -> Array:
    radius = round(3 * sigma)
    return smooth(x, np.exp(-((np.arange(-radius, radius + 1) / sigma) ** 2) / 2))


def detail(x: Array, scale: int = 2) -> Array:
    """What is some ``2 ** scale`` pixels wide: the difference of two smoothings with splines (à trous wavelet)."""
    spline = np.array([1.0, 4.0, 6.0, 4.0, 1.0])
    for level in range(scale):
        x = smooth(x, spline, dilation=2**level)
    return x - smooth(x, spline, dilation=2**scale)


def grey(x: Array) -> Array:
    """Brightness as the eye sees it: a 1 by 1 kernel that mixes the channels."""
    return xconv.conv(x, like(x, np.reshape([0.299, 0.587, 0.114], (1, 3, 1, 1))))


def edges(x: Array) -> Array:
    """The length of the brightness gradient, from one Sobel filter per direction."""
    sobel = np.outer([1.0, 2.0, 1.0], [-1.0, 0.0, 1.0]) / 8
    w = like(x, np.stack([sobel, sobel.T])[:, None])
    gradient = xconv.conv(grey(x), w, padding="same", pad_mode="reflect")
    xp = array_namespace(x)
    return xp.sqrt(xp.sum(gradient * gradient, axis=1, keepdims=True))


def picture(x: Array, brightest: float = 1.0) -> np.ndarray:
    """The one image of a batch as matplotlib wants it, channels last and from 0 to 1."""
    return np.clip(to_numpy(x)[0].transpose(1, 2, 0) / brightest, 0, 1)


def draw(panels: dict[str, np.ndarray], path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(13, 9.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    for ax, (title, image) in zip(axes.flat, panels.items(), strict=True):
        ax.imshow(image, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=15, pad=8)
        ax.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    options = arguments("Filter a photograph: edges, blur and detail.", "photo.png").parse_args()
    xp = namespace(options.backend)
    photo = load_sample_image("china.jpg").transpose(2, 0, 1)[None]
    x = xp.asarray(photo / 255, dtype=xp.float32)
    panels = {
        "Photograph": picture(x),
        "Edges: a Sobel pair": picture(edges(x), brightest=0.25),
        "Gaussian blur: one filter per channel": picture(blur(x)),
        "Detail: one filter at dilations 1, 2 and 4": picture(0.5 + 4 * detail(x)),
    }
    draw(panels, options.output)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
