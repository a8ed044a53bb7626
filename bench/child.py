"""A contender's process, seen from both of its ends: a line of JSON for every request, and one for its answer."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any

#: Settings of the surroundings that must not reach the children.
FOREIGN = ("OPENBLAS_", "GOTO_", "OMP_", "GOMP_", "KMP_", "MKL_", "BLIS_", "XLA_", "JAX_", "NPROC", "MALLOC_")
FOREIGN_GPU = ("CUPY_", "CUDNN_", "CUBLAS_", "NVIDIA_TF32_OVERRIDE", "TORCH_", "PYTORCH_")


class ChildError(Exception):
    """A child answered that a request failed, or ended."""


class Child:
    """The process that runs a module with some arguments and serves requests.

    One that takes longer than `limit` seconds for an answer is ended; to start may take any time.
    """

    def __init__(
        self, name: str, module: str, *arguments: str, threads: int | None = None, limit: float | None = None
    ) -> None:
        self.name = name
        self.limit: float | None = None
        environment = {key: value for key, value in os.environ.items() if not key.startswith((*FOREIGN, *FOREIGN_GPU))}
        if threads is not None:
            environment |= {f"{library}_NUM_THREADS": str(threads) for library in ("OPENBLAS", "OMP", "MKL")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[1],
        )
        self.facts = self.ask("start")
        self.limit = limit

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def ask(self, request: str, **arguments: Any) -> Any:
        """Wait for the answer to a request."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            with self._limited():
                print(json.dumps([request, arguments]), file=self.process.stdin, flush=True)
                answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            msg = f"{self.name}: its process ended with status {self.process.wait()}"
            raise ChildError(msg) from error
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer["value"]

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """End the process where a block takes too long."""
        if self.limit is None:
            yield
            return
        timer = Timer(self.limit, self.process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process, by the end of its input."""
        with suppress(BrokenPipeError), self.process:
            pass


def serve(requests: dict[str, Callable[..., Any]]) -> None:
    """Answer requests until the input ends: with ``value`` or, where the request raised, with ``error``."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not get between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent closes the pipe
    for line in sys.stdin:
        request, arguments = json.loads(line)
        try:
            answer = {"value": requests[request](**arguments)}
        except Exception as error:  # noqa: BLE001
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)
