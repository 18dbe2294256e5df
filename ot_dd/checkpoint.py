"""Orbax behind one small class: the only file that knows its API."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ot_dd.parallel import is_leader, is_there

_AGAIN = "the same command makes it again"

# Orbax numbers the save operations of a process, and the parts of a save that run in the
# background look their number up: two managers that write at once take each other's.
_turn = threading.Lock()
_writing: ocp.CheckpointManager | None = None


class _Manager(ocp.CheckpointManager):
    """Leaves to `told_to_end` when to end.

    Both would ask JAX's one service, which tells all processes to end at the question
    after the highest that any has asked: Orbax numbers its own by training steps, those
    of `told_to_end` would come to that number only hundreds of chunks later.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """Checkpoints of one training run, and a note that it has finished.

    A tree is restored into the shapes and shardings of an example tree, so a run can
    go on with another number of devices.

    Attributes:
      directory: where steps lie, one folder a step; only the newest is kept.
    """

    def __init__(self, directory: Path):
        """Opens (or creates) the checkpoints below `directory`."""
        self.directory = Path(directory).absolute()
        self._manager = _Manager(
            self.directory / "steps",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1, create=True, enable_async_checkpointing=True
            ),
        )

    def save(self, step: int, tree: Any) -> None:
        """Saves a tree of arrays as `step`; returns while it is being written.

        Another run's write that is still going on is waited for.

        Raises:
          OSError: when the disk has less space left than the tree takes.
          ValueError: when there is a checkpoint of that step or a later one.
        """
        global _writing
        self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        with _turn:
            if _writing is not None:
                _writing.wait_until_finished()
            _writing = self._manager
            if not self._manager.save(step, args=ocp.args.StandardSave(tree)):
                raise ValueError(
                    f"step {step} is not newer than {self._manager.latest_step()}, which "
                    f"{self.directory} has: save later ones, or use another directory"
                )

    def _check_space(self, needed: int) -> None:
        """Orbax, writing from many threads, would fill a terminal with its errors."""
        if not is_leader():
            return
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{os.strerror(errno.ENOSPC)}: a checkpoint takes {needed / 1e6:.3g} MB, "
                f"there are {free / 1e6:.3g} left",
                str(self.directory),
            )

    def restore(
        self, example: Any, *, remedy: str = "delete that folder, and " + _AGAIN
    ) -> Any | None:
        """Returns the newest tree, placed like `example`, or None if there is none.

        `remedy` ends the message about one that cannot be read.

        A copy of the directory that broke off has the newest step in part and, not yet
        deleted, the one before: that one is restored then, and what is newer deleted.

        Raises:
          ValueError: when no step can be read into the example.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, example)
        first = None
        for step in steps:
            try:
                restore = ocp.args.StandardRestore(abstract)
                tree = self._manager.restore(step, args=restore)
            except (jax.errors.JaxRuntimeError, MemoryError):
                raise  # Such as of memory: nothing is wrong with the files.
            except Exception as error:  # TensorStore raises no class of its own.
                if getattr(error, "errno", None) not in (None, errno.ENOENT):
                    raise  # The disk's, or the server's: nothing is known of the files.
                first = first or error
                if jax.process_count() > 1:
                    break  # The others may have read it.
            else:
                for damaged in (s for s in steps if s > step):
                    self._manager.delete(damaged)
                return tree
        if first is None:
            return None
        reason = (str(first).strip() or type(first).__name__).splitlines()[0]
        raise ValueError(
            f"checkpoint {self.directory}, step {steps[0]}, is damaged or of another "
            f"network ({reason}): {remedy}"
        ) from first

    def finish(self, note: dict) -> None:
        """Waits for pending writes, then marks the run as finished with `note`."""
        self._wait()
        write_json(self.directory / "finished.json", note)

    def finished(self) -> dict | None:
        """Returns the note of `finish`, or None while the run is not complete."""
        path = self.directory / "finished.json"
        return read_json(path) if is_there(path) else None

    def close(self) -> None:
        """Waits for pending writes and closes the manager."""
        self._wait()
        self._manager.close()

    def _wait(self) -> None:
        global _writing
        with _turn:
            self._manager.wait_until_finished()
            if _writing is self._manager:
                _writing = None


def write_json(path: Path, value: Any, *, everyone: bool = False) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part."""
    text = json.dumps(value, indent=1, sort_keys=False, allow_nan=False)
    write_atomic(path, lambda file: file.write(text.encode()), everyone=everyone)


def read_json(path: Path, *, remedy: str = "delete it, and " + _AGAIN) -> Any | None:
    """Returns the JSON of a file, or None where there is none.

    Raises:
      ValueError: for a file that is not JSON; its message ends with `remedy`.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error


def write_atomic(path: Path, write, *, everyone: bool = False) -> None:
    """Calls `write(binary_file)` on a temporary file, syncs it, renames it to `path`.

    Of several processes the first one writes, or every one that calls. What a killed
    run left of a temporary file, the next one writes over.
    """
    if not (everyone or is_leader()):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # A full disk does not say where.
        raise
