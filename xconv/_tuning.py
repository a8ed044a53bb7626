"""A record of measured times, which `config(tuning=...)` fills and follows."""

from collections.abc import Collection
from os import PathLike
from typing import Self

#: What a file of this format says of itself.
FORMAT = "xconv tuning 1"


class Tuning:
    """A record of which algorithm is fastest, found by measurement.

    Inside ``with xconv.config(tuning=tuning)``, a call with ``algorithm="auto"`` that the record does not know runs
    every algorithm that may serve it a few times, writes down how long each took, and goes on with the fastest. A call
    that it knows follows it. Outside of such a block nothing is measured and nothing is followed.

    The convolution and its two gradients are measured each by itself, for each geometry, dtype, library, device and
    each of the other settings. The times are of one machine: keep a record for each.

    See Also
    --------
    config : The block in which a record holds.
    plan : Shows the measured times beside the predicted costs.

    Notes
    -----
    Measuring takes some ten calls of every algorithm whose predicted cost is not hopeless, and the memory of one more
    result. Threads that share a record measure one after the other. Under ``jax.jit`` and other transformations, where
    there is nothing to measure, a call follows the record, or else the prediction; a graph of Dask's follows the
    prediction.

    The algorithms round differently, so that what is measured decides about the last bits of a result. Where these must
    be the same on every run, save the record and load it again.

    Examples
    --------
    >>> import numpy as np, xconv
    >>> x, w = np.ones((1, 8, 32, 32), np.float32), np.ones((8, 8, 5, 5), np.float32)
    >>> tuning = xconv.Tuning()
    >>> with xconv.config(tuning=tuning):
    ...     y = xconv.conv(x, w)
    >>> len(tuning)
    1
    """

    def __init__(self) -> None:
        #: Seconds that each algorithm took, by what was measured.
        self._seconds: dict[str, dict[str, float]] = {}

    def add(self, call: str, seconds: dict[str, float]) -> None:
        """Note how long each algorithm took for a call."""
        self._seconds[call] = seconds

    def seconds(self, call: str, names: Collection[str]) -> dict[str, float]:
        """How long those of the named algorithms took that were measured for a call."""
        return {name: took for name, took in self._seconds.get(call, {}).items() if name in names}

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """The record that was saved to `path`; ValueError for a file of another kind."""
        import json
        from pathlib import Path

        text = Path(path).read_text(encoding="utf-8")
        try:
            given = json.loads(text)
            known = {str(call): dict(times) for call, times in given["seconds"].items()}
            sound = given["format"] == FORMAT and all(map(_is_sound, known.values()))
        except (ValueError, TypeError, KeyError, AttributeError):
            sound = False
        if not sound:
            msg = f"`path` must be a file that `Tuning.save` wrote, and {str(path)!r} is not"
            raise ValueError(msg)
        tuning = cls()
        tuning._seconds = known
        return tuning

    def save(self, path: str | PathLike[str]) -> None:
        """Write the record to `path`, as JSON. A file that is there is replaced when the new one is whole.

        ValueError for a folder, a device or whatever else is there and no file.
        """
        import json
        from pathlib import Path

        path = Path(path).resolve()  # a link stays one
        if path.exists() and not path.is_file():
            msg = f"`path` must be a file or new, and {str(path)!r} is neither"
            raise ValueError(msg)
        new = path.with_name(f"{path.name}.new")
        content = {"format": FORMAT, "seconds": dict(sorted(self._seconds.items()))}
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        new.replace(path)

    def __len__(self) -> int:
        """How many calls the record knows."""
        return len(self._seconds)

    def __repr__(self) -> str:
        lines = [f"Tuning: {len(self)} measured"]
        for call, times in sorted(self._seconds.items()):
            ranked = sorted(times.items(), key=lambda item: item[1])
            lines.append(f"  {call}: " + ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in ranked))
        return "\n".join(lines)


def _is_sound(times: dict[object, object]) -> bool:
    return bool(times) and all(
        isinstance(name, str) and isinstance(seconds, float) and seconds > 0 for name, seconds in times.items()
    )
