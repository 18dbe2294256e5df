"""What every resumable command does with an error, and with Ctrl-C."""

import os
import sys
from collections.abc import Callable


def exit_code(work: Callable[[], object]) -> int:
    """Runs `work`; a mistake is one line and 2, an interruption says how to go on.

    With OT_DD_DEBUG set in the environment an error keeps its traceback.
    """
    try:
        work()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("OT_DD_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
