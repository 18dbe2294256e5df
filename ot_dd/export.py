"""Writes a distilled set in the form that other libraries read.

    python -m ot_dd.export --distilled=out/digits/distilled --format=parquet --output=DIR
        [--soft-labels=all|top-5|seeds|none]

`image_folder` is for PyTorch's ImageFolder, `tfds` for TensorFlow Datasets
(`builder_from_directory`, no TensorFlow needed), `parquet` for Hugging Face's `datasets`.
Soft labels travel in `soft_labels/views.npz`: all logits in float16, the k largest of each
view, or only the crops, flips and boxes, from which a teacher writes them again. README.md
is the data card.
"""

import argparse
import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np

from ot_dd.checkpoint import read_json, write_atomic
from ot_dd.command import exit_code
from ot_dd.stages.distilled import image_files, load_distilled
from ot_dd.stages.summary import group_runs, spread

FORMATS = ("image_folder", "tfds", "parquet")


def export(
    distilled: Path, output: Path, form: str, *, soft_labels: str = "all"
) -> Path:
    """Exports a distilled set; the output appears whole or not at all.

    Args:
      distilled: what `ot_dd.distill` wrote.
      output: a directory that does not exist.
      form: one of `FORMATS`.
      soft_labels: "all", "top-K", "seeds" or "none".

    Returns:
      The output directory.

    Raises:
      ValueError: for unknown names, or a set whose files disagree.
      FileExistsError: when the output is there already.
    """
    distilled, output = Path(distilled), Path(output)
    if form not in FORMATS:
        raise ValueError(f"--format is {form!r}: must be one of {', '.join(FORMATS)}")
    labels_kept = _labels_kept(soft_labels)
    _, labels, about = load_distilled(distilled)
    for field in ("provenance", "soft_labels"):
        if not isinstance(about.get(field), dict):
            raise ValueError(
                f"{distilled / 'dataset.json'} has no {field}, as sets of ot_dd.distill "
                "have: distil again"
            )
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another --output")
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        files = [
            file
            for folder in about["folders"]
            for file in image_files(distilled, folder)
        ]
        {"image_folder": _image_folder, "tfds": _tfds, "parquet": _parquet}[form](
            partial, files, labels, about
        )
        _soft_labels(distilled, partial, labels_kept)
        shutil.copy(distilled / "dataset.json", partial / "dataset.json")
        results = read_json(distilled.parent / "results.json") or {}
        product = {k: about["provenance"].get(k) for k in ("recipe", "labels")}
        if results.get("product") != product:
            results = {}  # Of other images or labels, which were there before.
        card = data_card(about, results, soft_labels)
        write_atomic(partial / "README.md", lambda file: file.write(card.encode()))
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return output


def _image_folder(root, files, labels, about):
    for file in files:
        target = root / "train" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def _parquet(root, files, labels, about):
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ValueError(
            "--format=parquet needs the extra export: pip install 'ot-dd[export]'"
        ) from error
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": about["class_names"]},
    }
    schema = pyarrow.schema(
        [("image", image), ("label", pyarrow.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    images = [
        {"bytes": file.read_bytes(), "path": f"{file.parent.name}/{file.name}"}
        for file in files
    ]
    columns = {"image": images, "label": labels.tolist()}
    (root / "data").mkdir()
    parquet.write_table(
        pyarrow.table(columns, schema=schema),
        root / "data" / "train-00000-of-00001.parquet",
    )


def _tfds(root, files, labels, about):
    import tensorflow_datasets as tfds

    name = "".join(c if c.isalnum() else "_" for c in about["name"].lower())

    class Distilled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """A distilled set."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # No package of checksums to look for.

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=tuple(about["image_shape"])),
                "label": tfds.features.ClassLabel(names=about["class_names"]),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,  # Soft labels count images in their order.
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, (file, label) in enumerate(zip(files, labels)):
                # An open file is stored as it is: no TensorFlow to encode it.
                yield i, {"image": file.open("rb"), "label": int(label)}

    Distilled.name = f"{name}_distilled"
    builder = Distilled(data_dir=str(root / "made"), file_format="array_record")
    builder.download_and_prepare()
    for file in Path(builder.data_path).iterdir():
        file.rename(root / file.name)
    shutil.rmtree(root / "made")


def _labels_kept(text: str) -> int | None:
    """Returns how many logits of a view are kept: -1 all, 0 none, None no views at all."""
    if text in ("all", "seeds", "none"):
        return {"all": -1, "seeds": 0, "none": None}[text]
    number = text.removeprefix("top-")
    if not text.startswith("top-") or not number.isdigit() or int(number) < 1:
        raise ValueError(
            f"--soft-labels is {text!r}: must be all, top-K (such as top-5), seeds or none"
        )
    return int(number)


def _soft_labels(distilled, root, kept):
    source = distilled / "soft_labels" / "views.npz"
    if kept is None:
        return
    if not source.exists():
        raise FileNotFoundError(f"{source} is missing: give --soft-labels=none")
    try:
        with np.load(source, allow_pickle=False) as stored:
            views = dict(stored)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{source} is damaged ({error}): distil again") from error
    logits = views.pop("logits", None)
    if kept == -1 and logits is not None:
        views["logits"] = logits
    elif kept and logits is not None:
        kept = min(kept, logits.shape[-1])
        # Python's stable order: among equals the first class.
        order = np.argsort(-logits.astype(np.float32), axis=-1, kind="stable")
        views["top_classes"] = order[..., :kept].astype(np.uint16)
        views["top_logits"] = np.take_along_axis(logits, order[..., :kept], -1)
    write_atomic(
        root / "soft_labels" / "views.npz", lambda file: np.savez(file, **views)
    )


_VIEWS = """\
`soft_labels/views.npz` has arrays with leading axes `[passes, batches]`: `rows`, the images
of a batch, counted in the order of classes and of files within a class; what was drawn for
them; and `logits`, or `top_classes` and `top_logits`, a row for each view. Views are made
in this order of images scaled to [-1, 1]: the box `crop` (top, left, height, width, as
shares of the image) is resized to the image's size, bilinear, without antialiasing, the
border repeated outside; mirrored where `flip`; brightness, contrast and saturation
multiplied by the factors `jitter`; and the pixels within `mix_box` (top, left, bottom,
right) are those of the batch's view number `mix_index`, which leaves the share `mix_ratio`.
`ot_dd.data.apply` does all of it."""


def data_card(about: dict, results: dict, soft_labels: str) -> str:
    """Returns the card: what it is, where it is from, what it reached, how to cite it.

    Args:
      about: `dataset.json`.
      results: `results.json` of the run, or empty.
      soft_labels: which of the labels came along.
    """
    shape = "x".join(map(str, about["image_shape"]))
    labels = about["soft_labels"]
    teachers = ", ".join(labels["teachers"])
    if soft_labels == "none":
        stored = f"Soft labels: none came along; there were some by {teachers}."
    elif soft_labels == "seeds" or labels.get("mode") == "online":
        stored = (
            f"Soft labels: the views alone, which are to be labelled by {teachers}."
        )
    else:
        kept = "" if soft_labels == "all" else f", the {soft_labels} of each"
        stored = f"Soft labels: {labels['what']}{kept}, by {teachers}."
    lines = [
        "---",
        "license: other",
        "task_categories: [image-classification]",
        f"pretty_name: {json.dumps(about['name'] + ', distilled')}",
        "---",
        f"# {about['name']}, distilled",
        "",
        f"{about['ipc']} synthetic images of each of {len(about['class_names'])} classes, "
        f"{shape}, made by ot-dd (set seed {about['set_seed']}).",
        "",
        stored,
        *([] if soft_labels == "none" else ["", _VIEWS]),
        "",
        "## Where it is from",
        "",
        f"- Data: {about['provenance']['data']}. Its licence is the licence of images "
        "made from it; ask its owner.",
        f"- Networks: {about['provenance']['networks']}.",
    ]
    for weights in about["provenance"]["weights"]:
        lines.append(f"- Weights: {json.dumps(weights)}")
    if results:
        lines += ["", "## What students reach", ""]
        lines += [
            "| set | student | labels | runs | accuracy |",
            "|---|---|---|---|---|",
        ]
        for (student, _), kinds in group_runs(results["records"]).items():
            for (name, variant), found in kinds.items():
                for kind, runs in found.items() if not variant else ():
                    row = name, student, kind, str(len(runs)), str(spread(runs))
                    lines.append(f"| {' | '.join(row)} |")
        lines += [
            "",
            "Accuracy in percent ± deviation between sets / students of one set.",
        ]
    lines += [
        "",
        "## Citation",
        "",
        "Cui, Qin, Zhou, Li, Li: Optimizing Distributional Geometry Alignment with Optimal "
        "Transport for Generative Dataset Distillation. NeurIPS 2025, arXiv:2512.00308.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line and exports; a mistake is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m ot_dd.export", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--distilled", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--format", default="image_folder")
    parser.add_argument("--soft-labels", default="all")
    given = parser.parse_args(arguments)

    def work():
        made = export(
            given.distilled, given.output, given.format, soft_labels=given.soft_labels
        )
        size = sum(f.stat().st_size for f in made.rglob("*") if f.is_file())
        print(f"{made}: {size:,} bytes, see its README.md")

    return exit_code(work, saves=False)


if __name__ == "__main__":
    sys.exit(main())
