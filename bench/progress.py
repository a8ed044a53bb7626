"""One line that says how far a run has come; a line of its own for each step where the output is no terminal."""

import sys
import time


class Progress:
    """A count of steps of equal weight, on standard error."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.begin = total, 0, time.monotonic()
        self.text, self.terminal = "", sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Show what is being done."""
        seconds = time.monotonic() - self.begin
        line = f"[{self.done}/{self.total}, {seconds // 60:.0f}:{seconds % 60:02.0f}] {text}"
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
        elif text != self.text:
            sys.stderr.write(f"{line}\n")
        self.text = text
        sys.stderr.flush()

    def step(self) -> None:
        """Count one step."""
        self.done += 1

    def note(self, text: str) -> None:
        """Leave a line behind."""
        sys.stderr.write(f"\r\x1b[K{text}\n" if self.terminal else f"{text}\n")

    def end(self) -> None:
        """Leave the line of the progress."""
        if self.terminal:
            sys.stderr.write("\n")
