"""PyTorch, Diffusers and timm weights into checkpoints that `models.load` reads.

    python -m ot_dd.convert --model=NAME --input=FILE --output=DIR

`_files` opens tensors without running anything, `_layouts` has one table of names for
each public layout, `_engine` fills our variables by them and reports every problem.
"""

from ot_dd.convert._convert import convert
from ot_dd.convert._engine import ConversionError
from ot_dd.convert._files import open_tensors

__all__ = ["ConversionError", "convert", "open_tensors"]
