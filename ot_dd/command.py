"""What every resumable command does with an error, with Ctrl-C and with SIGTERM."""

import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

_MISTAKES_AT_WORK = (ValueError, OSError, FloatingPointError)
_MISTAKES = (
    flags.Error, AttributeError, ImportError, KeyError, NameError, OSError, SyntaxError,
    TypeError, ValueError,
)  # fmt: skip


def config_flag(what: str):
    """Defines `--config=file.py:switch` and `--config.field=value`; default digits.

    Overrides of the default config are read here, before other flags are parsed.

    Args:
      what: the flag's help.
    """
    default = Path(__file__).resolve().parent.parent / "configs" / "digits.py"
    try:
        return config_flags.DEFINE_config_file(
            "config", str(default), what, lock_config=True
        )
    except _MISTAKES as error:
        _refuse(error)


def json_flag(what: str):
    """Defines `--json=FILE`, which a directory cannot be.

    Args:
      what: the flag's help.
    """
    holder = flags.DEFINE_string("json", "", what)
    flags.register_validator(
        "json",
        lambda path: not (path and Path(path).is_dir()),
        "it is a directory: name a file",
    )
    return holder


def parse_flags(argv: list[str]) -> list[str]:
    """Parses absl's flags, for `app.run`; a wrong one is one line and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise flags.Error(f"unexpected argument {rest[1]!r}: see --help")
        getattr(flags.FLAGS.config, "name", "")  # One that was not loaded says so.
        if not isinstance(flags.FLAGS.config, ConfigDict):
            raise flags.Error("--config: its get_config() must return a ConfigDict")
        return rest
    except _MISTAKES as error:
        _refuse(error)


def _refuse(error):
    if os.environ.get("OT_DD_DEBUG"):
        raise error
    missing = re.search(r"No such file or directory: '([^']*)'", str(error))
    if missing and "config file" in str(error):
        files = sorted(Path(missing[1]).parent.glob("*.py"))
        whole = [str(file) for file in files if "def get_config" in file.read_text()]
        there = ", ".join(whole)
        print(
            f"error: --config: there is no {missing[1]}"
            + (f"; there are {there}" if there else ""),
            file=sys.stderr,
        )
        sys.exit(2)
    if at := _line_of_config(error):
        print(f"error: {at}", file=sys.stderr)
        sys.exit(2)
    # A config file's own error comes wrapped in its traceback.
    text = str(error).split("ConfigError: ")[-1].split("Pass --help")[0]
    text = (
        " ".join(text.replace("\\n", " ").split()).replace("\\", "").replace("''", "'")
    )
    field = re.match(r"\W*(\w+)\W+(Did you mean .*?\?)", text)
    alone = re.fullmatch(r"\W*(\w+)\W*", text)
    if field:
        text = f"the config has no field {field[1]!r}. {field[2]}"
    elif alone:
        text = f"the config has no field {alone[1]!r}"
        if any(f".options.{alone[1]}=" in argument for argument in sys.argv):
            text += ": options that a config file does not name are added there"
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def _line_of_config(error) -> str:
    """Returns a config file's mistake and the line that it is in, or nothing."""
    whole = "".join(traceback.format_exception(error))
    if "ConfigError: " in whole:
        return ""  # It says itself what is wrong.
    if "has no attribute 'get_config'" in whole:
        return "--config: the file has no function get_config"
    *_, last = whole.strip().splitlines()
    what = last.partition(": ")[2] if "whilst parsing config" in whole else str(error)
    if isinstance(error, SyntaxError):
        what = error.msg
    frames = re.findall(r'File "([^"]+\.py)", line (\d+)', whole)
    own = [at for at in frames if "site-packages" not in at[0] and at[0] != __file__]
    if not own:  # The command line's, or a `get_config` of another signature.
        wrapped = str(error).partition(": Error whilst parsing config file")
        return f"{wrapped[0]}: {what}" if wrapped[1] else ""
    locked = re.match(r"\W*Key \W*(\w+)\W* does not exist", what)
    if locked:
        meant = re.search(r"Did you mean .*\?", what)
        what = f"the config has no field {locked[1]!r}"
        what += f". {meant[0]}" if meant else ""
    file = own[0][0]  # Whatever it calls, and fails in.
    line = [at[1] for at in own if at[0] == file][-1]
    return f"{file}, line {line}: {what}"


def quiet() -> None:
    """Silences what would say again, in many lines, what a command says in one.

    What Orbax logs it raises as well, if it is an error; threads of a write that has
    failed say once more that nobody waits for them.
    """
    for name in ("absl", "asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def exit_code(work: Callable[[], object], *, saves: bool = True) -> int:
    """Runs `work`; a mistake is one line and 2, an interruption says how to go on.

    Told to end (SIGTERM, as before a preemption), training saves its state and stops.
    With OT_DD_DEBUG set in the environment an error keeps its traceback.

    Args:
      work: what to do.
      saves: whether it heeds SIGTERM; else the signal ends it at once.
    """
    try:
        return _exit_code(work, saves)
    except Exception:
        if _is_one_of_several():  # The others would wait for it for minutes.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        raise


def _exit_code(work, saves):
    from ot_dd.metrics import TOLD_TO_END, Stopped

    quiet()
    told = signal.SIGTERM

    def interrupted(*_):
        # Raised in a callback of the garbage collector it is lost, the event is not.
        nonlocal told
        told = signal.SIGINT
        TOLD_TO_END.set()
        raise KeyboardInterrupt

    if saves:
        # Of several processes JAX takes the signal, for all to stop at one place.
        signal.signal(signal.SIGTERM, lambda *_: TOLD_TO_END.set())
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupted)
    try:
        work()
        if signal.getsignal(signal.SIGINT) is interrupted:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # All is done and written.
        return 0
    except _MISTAKES_AT_WORK as error:
        if os.environ.get("OT_DD_DEBUG"):
            raise
        said, code = f"error: {error}", 2
    except RuntimeError as error:
        # What JAX says of memory, or of a process that it has lost.
        if os.environ.get("OT_DD_DEBUG") or type(error).__module__.split(".")[0] not in (
            "jax", "jaxlib",
        ):  # fmt: skip
            raise
        said, code = f"error: {str(error).splitlines()[0]}", 2
    except KeyboardInterrupt:
        said, code = "\nstopped; the same command goes on from here", 130
    except Stopped as stopped:
        said = f"told to end at {stopped}; the same command goes on from here"
        code = 128 + told
    print(said, file=sys.stderr, flush=True)
    if code == 130:
        # A program that still runs in a thread would crash in what Python takes down.
        sys.stdout.flush()
        os._exit(code)
    if code == 2 and _is_one_of_several():
        os._exit(code)  # The others may be waiting for it: they learn of it at once.
    return code


def _is_one_of_several() -> bool:
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1
