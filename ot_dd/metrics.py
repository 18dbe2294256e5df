"""Progress for people (one line, rate and time left) and metrics for machines."""

import json
import math
import os
import sys
import threading
import time
from pathlib import Path

from ot_dd.config import ConfigError
from ot_dd.parallel import TOLD_TO_END, is_leader


class Stopped(Exception):
    """Raised inside a job when the run that started it has ended, or is to end."""


class Metrics:
    """Appends metrics to `metrics.jsonl` and shows progress on standard error.

    On a terminal one line is rewritten; elsewhere a job prints a line at most every
    `interval` seconds. Jobs in several threads may share one object.

    Attributes:
      stop: once set, `check` raises `Stopped`: that is how jobs in threads end.
    """

    def __init__(self, path: Path, interval: float = 10.0, *, tensorboard: str = ""):
        """Opens `path` for appending; parents must exist.

        Args:
          path: the file of metrics.
          interval: seconds between two lines of a job's progress off a terminal.
          tensorboard: a directory for TensorBoard's event files as well, or nothing.

        Raises:
          ConfigError: when the extra `tensorboard` is wanted and not installed.
        """
        self._quiet = not is_leader()
        path = os.devnull if self._quiet else path
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - lives with the run
        self._events = None
        if tensorboard and not self._quiet:
            self._events = _event_writer(tensorboard)
        self._interval = interval
        self._terminal = sys.stderr.isatty()
        self._jobs: dict[str, dict] = {}
        self._lock = threading.Lock()
        self.stop = threading.Event()

    def write(self, name: str, step: int, **scalars: float) -> None:
        """Appends one line of scalars, and TensorBoard's events of them if wanted."""
        row = {"time": round(time.time(), 3), "name": name, "step": int(step)}
        values = {key: float(value) for key, value in scalars.items()}
        row |= {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        if self._events is not None:
            for key, value in scalars.items():
                self._events.add_scalar(f"{name}/{key}", float(value), int(step))

    def progress(self, name: str, done: int, total: int, note: str = "") -> None:
        """Shows how far `name` is, its rate and the time left."""
        if self._quiet:
            return
        now = time.monotonic()
        job = self._jobs.setdefault(name, {"start": now, "first": done, "shown": 0.0})
        last = done >= total
        interval = 0.2 if self._terminal else self._interval
        if not last and now - job["shown"] < interval:
            return
        job["shown"] = now
        elapsed, steps = now - job["start"], done - job["first"]
        rate = steps / elapsed if elapsed > 0 and steps else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate and not last else ""
        pace = f"{rate:.1f}/s" if rate >= 0.1 else f"{1 / max(rate, 1e-9):.0f} s each"
        speed = f" ({pace}{left})" if rate else ""
        line = f"  {name}: {done}/{total}{speed} {note}".rstrip()
        end = "\n" if last or not self._terminal else ""
        start = "\r\x1b[K" if self._terminal else ""
        with self._lock:
            print(start + line, end=end, file=sys.stderr, flush=True)
        if last:
            self._jobs.pop(name, None)

    def check(self, name: str) -> None:
        """Ends a job, before the part of it called `name`, where it is to end.

        Raises:
          Stopped: when `stop` is set or this process was told to end.
        """
        if self.stop.is_set() or TOLD_TO_END.is_set():
            raise Stopped(name)

    def say(self, text: str) -> None:
        """Prints one line."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def _event_writer(directory: str):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs the extra of that name: pip install 'ot-dd[tensorboard]'"
        ) from error
    return SummaryWriter(directory, flush_secs=10)
