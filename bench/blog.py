"""The baseline: convolution as NumPy tutorials teach it, written anew from the description of the algorithm.

Three index arrays name, for every tap and every window, the element that the window sees there: channel ``k``, row
``i``, column ``j``. Indexing with them unfolds the images into columns, one matrix product does the convolution, and
``np.add.at`` with the same indices folds columns back. Images are ``(D, C, H, W)`` and columns
``(C*HF*WF, H'*W'*D)``, the image index running fastest. Plain on purpose: nothing here is tuned.
"""

from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """How the filters move over the images."""

    height: int
    width: int
    stride: int
    padding: int

    def steps(self, images: tuple[int, ...]) -> tuple[int, int]:
        """Windows that fit below each other and beside each other."""
        rows = (images[2] + 2 * self.padding - self.height) // self.stride + 1
        columns = (images[3] + 2 * self.padding - self.width) // self.stride + 1
        return rows, columns


class Cache(NamedTuple):
    """What the backward pass needs of the forward pass."""

    X: np.ndarray
    W: np.ndarray
    window: Window
    columns: np.ndarray


def indices(images: tuple[int, ...], window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Name what each window sees: channel ``(C*HF*WF, 1)``, padded row and column ``(C*HF*WF, H'*W')``."""
    tap = np.indices((images[1], window.height, window.width)).reshape(3, -1, 1)
    corner = window.stride * np.indices(window.steps(images)).reshape(2, 1, -1)
    return tap[0], tap[1] + corner[0], tap[2] + corner[1]


def im2col(X: np.ndarray, window: Window) -> np.ndarray:
    """Unfold images into a matrix with one column per window."""
    p = window.padding
    k, i, j = indices(X.shape, window)
    patches = np.pad(X, ((0, 0), (0, 0), (p, p), (p, p)))[:, k, i, j]
    return patches.transpose(1, 2, 0).reshape(len(k), -1)


def col2im(columns: np.ndarray, images: tuple[int, ...], window: Window) -> np.ndarray:
    """Fold columns back: every element is added to the one that it was read from."""
    n, c, height, width = images
    p = window.padding
    k, i, j = indices(images, window)
    padded = np.zeros((n, c, height + 2 * p, width + 2 * p), columns.dtype)
    np.add.at(padded, (slice(None), k, i, j), columns.reshape(len(k), -1, n).transpose(2, 0, 1))
    return padded[:, :, p : p + height, p : p + width]


def conv_forward(X: np.ndarray, W: np.ndarray, stride: int, padding: int) -> tuple[np.ndarray, Cache]:
    """Convolve, and keep the columns for the backward pass."""
    window = Window(*W.shape[2:], stride, padding)
    columns = im2col(X, window)
    out = W.reshape(len(W), -1) @ columns
    out = out.reshape(len(W), *window.steps(X.shape), len(X)).transpose(3, 0, 1, 2)
    return out, Cache(X, W, window, columns)


def conv_backward(dout: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """Compute both gradients, dX and dW."""
    X, W, window, columns = cache
    gradient = dout.transpose(1, 2, 3, 0).reshape(len(W), -1)
    dW = (gradient @ columns.T).reshape(W.shape)
    return col2im(W.reshape(len(W), -1).T @ gradient, X.shape, window), dW
