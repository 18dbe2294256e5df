"""`python -m ot_dd.convert`: see `ot_dd.convert`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import sys
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import Progress

from ot_dd import models
from ot_dd.command import quiet
from ot_dd.convert import convert
from ot_dd.convert._layouts import layouts_of


def main(argv=None) -> int:
    """Converts; returns 0, or 2 with one message when the file is not the model."""
    known = ", ".join(name for name in models.names() if layouts_of(name))
    parser = argparse.ArgumentParser(
        "python -m ot_dd.convert",
        description="Converts PyTorch weights; docs/weights.md says where they are.",
        epilog=f"Models with public weights: {known}.",
    )
    parser.add_argument(
        "--model", required=True, help="what the weights are of, see below"
    )
    files = ".safetensors, .npz, .pt, .pth, .bin or .ckpt; never executed"
    parser.add_argument("--input", required=True, type=Path, help=files)
    parser.add_argument("--output", required=True, type=Path, help="a new directory")
    given = parser.parse_args(argv)

    quiet()
    jax.config.update("jax_platforms", "cpu")  # Nothing is computed.
    tasks = {}
    with Progress(transient=True, console=Console(stderr=True)) as bar:

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
        except KeyboardInterrupt:
            bar.stop()
            print("stopped; nothing was written", file=sys.stderr)
            return 130
    print(
        f"{given.output}: {note['model']}, {note['parameters']:,} parameters in "
        f"{note['tensors']} tensors, from {note['file']} (layout: {note['layout']}, "
        f"sha256 {note['sha256'][:16]}...)\n{note['licence']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
