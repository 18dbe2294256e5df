"""The work directory: what was made, under names that say from which recipe.

Everything that takes time is stored under `<kind>-<fingerprint>`, where the
fingerprint covers the config it depends on and the fingerprints of its inputs. What is
there is used, what is missing is made, and a changed field makes only what depends on
it. All writes are atomic, so a run that is killed goes on where it was.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ot_dd.checkpoint import Checkpoints, read_json, write_atomic, write_json
from ot_dd.metrics import Metrics


class WorkDir:
    """One run's directory.

    Attributes:
      path: the directory.
      metrics: progress and `metrics.jsonl`.
    """

    def __init__(self, path: Path):
        """Creates the directory if needed and opens its metrics."""
        self.path = Path(path).absolute()
        self.path.mkdir(parents=True, exist_ok=True)
        self.metrics = Metrics(self.path / "metrics.jsonl")

    def checkpoints(self, name: str) -> Checkpoints:
        """Opens the Orbax checkpoints called `name`."""
        return Checkpoints(self.path / "checkpoints" / name)

    def arrays(
        self, name: str, make: Callable[[], dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Returns the arrays stored as `name`, making and storing them if missing."""
        path = self.path / "cache" / f"{name}.npz"
        if not path.exists():
            with self.timed(name):
                made = {key: np.asarray(value) for key, value in make().items()}
            write_atomic(path, lambda file: np.savez(file, **made))
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)

    def json(self, name: str, make: Callable[[], dict]) -> dict:
        """Returns the JSON stored as `name`, making and storing it if missing."""
        path = self.path / "cache" / f"{name}.json"
        stored = read_json(path)
        if stored is None:
            with self.timed(name):
                stored = make()
            write_json(path, stored)
        return stored

    @contextlib.contextmanager
    def timed(self, name: str):
        """Adds the seconds spent inside to the time of `name`, kept across runs."""
        start = time.monotonic()
        try:
            yield
        finally:
            path = self.path / "cache" / "seconds" / f"{name}.json"
            before = read_json(path) or 0.0
            write_json(path, round(before + time.monotonic() - start, 3))

    def seconds(self) -> dict[str, float]:
        """Returns seconds by name, over all runs in this directory."""
        folder = self.path / "cache" / "seconds"
        return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
