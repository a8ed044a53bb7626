"""The figure that ``digits.py`` draws."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

COLOURS = "RdBu"
DARK, PALE = "#2166ac", "#bcd5ea"
NOTE = "Blue is positive, red negative, white zero; each panel has its own scale."


def mosaic(maps: np.ndarray, columns: int) -> np.ndarray:
    """Maps ``(k, h, w)`` side by side in one picture, with gaps that are not drawn."""
    k, h, w = maps.shape
    framed = np.pad(maps, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    rows = framed.reshape(k // columns, columns, h + 1, w + 1).swapaxes(1, 2)
    return rows.reshape(k // columns * (h + 1), columns * (w + 1))[:-1, :-1]


def show(ax: Axes, picture: np.ndarray, title: str) -> None:
    limit = np.nanquantile(np.abs(picture), 0.99)
    ax.imshow(picture, cmap=COLOURS, vmin=-limit, vmax=limit)
    ax.set_title(title)
    ax.axis("off")


def draw(losses: np.ndarray, filters: np.ndarray, maps: list[np.ndarray], path: Path) -> None:
    """The curve and the filters; below, what the layers make of one digit."""
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlepad": 10})
    figure = plt.figure(figsize=(13, 7.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
    figure.supxlabel(NOTE, color="grey", fontsize=10)
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))

    curve, bank = above.subplots(1, 2, width_ratios=(2.4, 1))
    epochs = np.arange(1, losses.size + 1) / losses.shape[1]
    curve.semilogy(epochs, losses.ravel(), color=PALE, linewidth=0.8, label="each batch")
    curve.semilogy(np.arange(len(losses)) + 0.5, losses.mean(axis=1), color=DARK, linewidth=2, label="mean of an epoch")
    curve.set(title="Loss on the training digits", xlabel="epoch", ylabel="cross entropy", xlim=(0, len(losses)))
    curve.set_yticks([0.1, 1], ["0.1", "1"])
    curve.legend(frameon=False)
    show(bank, mosaic(filters[:, 0], 4), "16 filters of the first layer")

    image, first, second, scores = below.subplots(1, 4, width_ratios=(1, 1, 39 / 19, 1))
    show(image, maps[0][0], "Held-out digit, 8 by 8")
    show(first, mosaic(maps[1], 4), "First layer: 16 maps, 8 by 8")
    show(second, mosaic(maps[2], 8), "Second layer, stride 2: 32 maps, 4 by 4")
    chances = np.exp(maps[3][:, 0, 0] - maps[3].max())
    chances /= chances.sum()
    scores.barh(range(10), chances, color=[DARK if p == chances.max() else PALE for p in chances])
    scores.set(title="Third layer: 10 scores", xlabel="probability", xlim=(0, 1), yticks=range(10))
    scores.set_box_aspect(1)
    scores.invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
