"""A picture of a report, as a browser shows it; README's comes from this.

python docs/picture.py out/digits/report.html docs/report.png
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = "chromium"
_FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
    "hide-scrollbars", "disable-background-networking", "disable-component-update",
    "disable-sync", "enable-logging=stderr",
)  # fmt: skip


def shoot(page: Path, picture: Path, *, width: int, height: int, dark=False) -> str:
    """Saves what Chromium shows of a page, and returns what it printed.

    Lines with `CONSOLE` are the page's own messages and errors.

    Args:
      page: an HTML file.
      picture: the PNG file to write.
      width: of the window, in pixels.
      height: of the window.
      dark: whether the reader prefers dark pages.
    """
    flags = [*_FLAGS, f"window-size={width},{height}", f"screenshot={picture}"]
    # Blink's names: 0 prefers dark, 1 light.
    flags.append(f"blink-settings=preferredColorScheme={0 if dark else 1}")
    with tempfile.TemporaryDirectory() as profile:
        flags.append(f"user-data-dir={profile}")
        command = [CHROMIUM, *(f"--{flag}" for flag in flags)]
        done = subprocess.run(
            [*command, page.absolute().as_uri()],
            check=True, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    return done.stderr


def main() -> None:
    """Takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1000)
    parser.add_argument("--height", type=int, default=1500)
    options = vars(parser.parse_args())
    shoot(options.pop("page"), options.pop("picture").absolute(), **options)


if __name__ == "__main__":
    main()
