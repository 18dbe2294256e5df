"""`python -m ot_dd.convert`: see `ot_dd.convert`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # Nothing is computed.

import argparse
import sys
from pathlib import Path

from rich.progress import Progress


def main(argv=None) -> int:
    """Converts; returns 0, or 2 with one message when the file is not the model."""
    parser = argparse.ArgumentParser(
        "python -m ot_dd.convert",
        description="Converts PyTorch weights; docs/weights.md says where they are.",
    )
    parser.add_argument("--model", required=True, help="a name of the registry")
    parser.add_argument("--input", required=True, type=Path,
                        help=".safetensors, .npz, .pt or .pth; never executed")  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, help="a new directory")
    given = parser.parse_args(argv)

    from ot_dd.convert import convert

    tasks = {}
    with Progress(transient=True) as bar:

        def progress(what, done, total):
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        try:
            note = convert(given.model, given.input, given.output, progress=progress)
        except (ValueError, OSError) as error:
            bar.stop()
            print(f"error: {error}", file=sys.stderr)
            return 2
    print(
        f"{given.output}: {note['model']}, {note['parameters']:,} parameters in "
        f"{note['tensors']} tensors, from {note['file']} (layout: {note['layout']}, "
        f"sha256 {note['sha256'][:16]}...)\n{note['licence']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
