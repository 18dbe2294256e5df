"""What every resumable command does with an error, with Ctrl-C and with SIGTERM."""

import os
import signal
import sys
from collections.abc import Callable


def exit_code(work: Callable[[], object]) -> int:
    """Runs `work`; a mistake is one line and 2, an interruption says how to go on.

    Told to end (SIGTERM, as before a preemption), training saves its state and stops.
    With OT_DD_DEBUG set in the environment an error keeps its traceback.
    """
    from ot_dd.metrics import TOLD_TO_END, Stopped

    signal.signal(signal.SIGTERM, lambda *_: TOLD_TO_END.set())
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
    except Stopped as stopped:
        print(f"told to end: {stopped} is saved; the same command goes on from here",
              file=sys.stderr)  # fmt: skip
        return 128 + signal.SIGTERM
    return 0
