"""The command line. `main` turns every outcome into an exit code and at most one message on stderr.

Exit codes: 0 success; 1 a check failed, or progc has a bug; 2 wrong use or bad input; 130 interrupted. `progc train`
exits with 2 only if training did not begin, else with 3; with 75 if the same command may succeed
(`progc.train.failing`); and with 128 + the number of the signal that stopped it, after it saved (143 SIGTERM, 130
SIGINT). May import all other packages; a command imports what it needs when it runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence

from progc.errors import PipelineSyntaxError, ProgcError
from progc.files.text import visible


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: the arguments, without the program's name. None uses those of the process.
    """
    # torch reads this when it is imported. Threads that spin while they wait slow a busy machine down many times.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments  # accepted anywhere, since people add it at the end
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with _quiet(debug):
            return _run(arguments)
    except BrokenPipeError:
        # The reader of our output is gone (`progc inspect ... | head`): nobody could read a message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except ProgcError as error:
        code = _fail(f"error: {error}", error.exit_code, debug)
        if isinstance(error, PipelineSyntaxError):
            from progc.pipeline.text import pointer

            print(pointer(error), file=sys.stderr)
        return code
    except Exception as error:  # a bug in progc: the user still gets one line
        text = f"internal error: {type(error).__name__}: {error}; run again with --debug and report the traceback"
        return _fail(text, 1, debug)


def _run(arguments: list[str]) -> int:
    import typer

    from progc.cli.app import app

    try:
        result = typer.main.get_command(app).main(arguments, prog_name="progc", standalone_mode=False)
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except Exception as error:
        # Wrong use, reported by typer (with its bundled or the installed click).
        if hasattr(error, "format_message") and not isinstance(error, ProgcError):
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "progc"
            message = error.format_message() or "no command given"
            return _fail(f"error: {message.rstrip('.')}; see {command} --help", 2, debug=False)
        raise
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"progc: {visible(' '.join(message.split()))}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Keeps warnings and log lines of libraries off stderr; what users need comes as an exception or a note."""
    if debug:
        yield
        return
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
