"""A convolution layer in a few lines for PyTorch, JAX and autograd: two of them learn how steep an image is.

Run it with what is installed of the three; the others are left out with a sentence::

    python examples/layers.py

The images are random blobs, and what is to be learned is the length of the gradient that Sobel's filters see at every
pixel. The network is two convolutions with a ReLU between. Every library starts from the same weights and takes the
same steps, so the losses agree. It takes a few seconds.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import xconv

Values = list[np.ndarray]
STEPS, RATE = 200, 0.05
#: The error may not be more than this part of what it was.
REQUIRED = 0.1


def with_torch(images: np.ndarray, slopes: np.ndarray, values: Values) -> list[float]:
    import torch

    from xconv.interop.torch import conv

    class Conv(torch.nn.Module):
        def __init__(self, w: np.ndarray, b: np.ndarray, **options: Any) -> None:
            super().__init__()
            self.w, self.b = (torch.nn.Parameter(torch.tensor(value)) for value in (w, b))
            self.conv = partial(conv, **options)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x, self.w, self.b)

    torch.set_num_threads(1)  # on a busy machine they wait for one another longer than such small arrays take
    first, last = Conv(*values[:2], padding="same", pad_mode="edge"), Conv(*values[2:])
    network = torch.nn.Sequential(first, torch.nn.ReLU(), last)
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    x, y = torch.tensor(images), torch.tensor(slopes)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(network(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def with_jax(images: np.ndarray, slopes: np.ndarray, values: Values) -> list[float]:
    import jax
    import jax.numpy as jnp

    from xconv.interop.jax import conv

    def layer(parameters: list[jax.Array], x: jax.Array, **options: Any) -> jax.Array:
        w, b = parameters
        return conv(x, w, b, **options)

    def loss(values: list[jax.Array]) -> jax.Array:
        hidden = jax.nn.relu(layer(values[:2], x, padding="same", pad_mode="edge"))
        return jnp.mean((layer(values[2:], hidden) - y) ** 2)

    @jax.jit
    def step(values: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
        before, grads = jax.value_and_grad(loss)(values)
        return before, [value - RATE * grad for value, grad in zip(values, grads, strict=True)]

    x, y, learned = jnp.asarray(images), jnp.asarray(slopes), [jnp.asarray(value) for value in values]
    losses = []
    for _ in range(STEPS):
        before, learned = step(learned)
        losses.append(float(before))
    return losses


def with_autograd(images: np.ndarray, slopes: np.ndarray, values: Values) -> list[float]:
    import autograd.numpy as anp
    from autograd import value_and_grad

    from xconv.interop.autograd import conv

    def layer(parameters: Values, x: np.ndarray, **options: Any) -> np.ndarray:
        w, b = parameters
        return conv(x, w, b, **options)

    def loss(values: Values) -> float:
        hidden = anp.maximum(layer(values[:2], images, padding="same", pad_mode="edge"), 0)
        return anp.mean((layer(values[2:], hidden) - slopes) ** 2)

    losses, gradients = [], value_and_grad(loss)
    for _ in range(STEPS):
        before, grads = gradients(values)
        values = [value - np.float32(RATE) * grad for value, grad in zip(values, grads, strict=True)]
        losses.append(float(before))
    return losses


def problem(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, Values]:
    """Images, how steep they are, and the filters and biases of two layers to begin with."""
    smooth = np.ones((1, 1, 5, 5)) / 25
    blobs = xconv.conv(rng.standard_normal((16, 1, 24, 24)), smooth, padding="same", pad_mode="wrap")
    blobs /= blobs.std()
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    steps = xconv.conv(blobs, np.stack([sobel, sobel.T])[:, None], padding="same", pad_mode="edge")
    slopes = np.hypot(steps[:, :1], steps[:, 1:])
    values = [rng.normal(0, np.sqrt(2 / 9), (16, 1, 3, 3)), np.zeros(16)]
    values += [rng.normal(0, np.sqrt(2 / 16), (1, 16, 1, 1)), np.zeros(1)]
    as_float32 = [array.astype(np.float32) for array in (blobs, slopes, *values)]
    return as_float32[0], as_float32[1], as_float32[2:]


def main() -> None:
    images, slopes, values = problem(np.random.default_rng(0))
    ways: dict[str, Callable[..., list[float]]] = {"torch": with_torch, "jax": with_jax, "autograd": with_autograd}
    fell = []
    for name, train in ways.items():
        begin = time.perf_counter()
        try:
            losses = train(images, slopes, values)
        except ModuleNotFoundError as error:
            print(f"{name:<9} is left out: {error}")
            continue
        print(f"{name:<9} loss {losses[0]:.4f} to {losses[-1]:.4f}, {time.perf_counter() - begin:.1f} s")
        fell.append(losses[-1] < REQUIRED * losses[0])
    sys.exit(0 if all(fell) else 1)


if __name__ == "__main__":
    main()
