"""How a command ends: its exit code, and one line on stderr when something was wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
DEBUG_FLAG = "--debug"
# Wrong values, files and disks; packages that an extra would bring; training that has left what numbers can hold.
EXPECTED = (ValueError, OSError, ImportError, FloatingPointError)


def run(app: typer.Typer, arguments: Sequence[str], program: str) -> int:
    """Run a command line and report its end.

    Exceptions become one line: wrong usage and ValueErrors of the public functions (arguments checked at the door)
    exit with 2, Quantone's own errors and everything unexpected with 1, Ctrl-C with 130. With --debug, anywhere
    before a bare --, the traceback is shown as well.

    Args:
        app: the commands.
        arguments: without the program's name.
        program: its name, for usage lines.

    Returns:
        The exit code.
    """
    arguments, debug = _take_debug_flag(arguments)
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return _wrong_usage(error, program)
    except BrokenPipeError:
        # Whoever read the output has seen enough (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:  # noqa: BLE001 - the last stop: whatever it is, the user gets one line
        if debug:
            sys.excepthook(type(error), error, error.__traceback__)
        return _failed(error, debug=debug)
    return _interrupted() if code == INTERRUPTED else int(code or OK)


def _take_debug_flag(arguments: Sequence[str]) -> tuple[list[str], bool]:
    options_end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:options_end] if argument != DEBUG_FLAG]
    return [*kept, *arguments[options_end:]], len(kept) < options_end


def _wrong_usage(error: typer.TyperException, program: str) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # the help has been printed already, or is the message
        sys.stderr.write(error.message)
        return USAGE
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else program
    _say(f"{error.format_message().rstrip('.')} (see: {path} --help)")
    return error.exit_code


def _failed(error: Exception, *, debug: bool) -> int:
    # Looked up, not imported: importing tokenizer means importing torch, and a command that raised its errors has.
    errors = sys.modules.get("tokenizer.errors")
    known = errors is not None and isinstance(error, errors.QuantoneError)
    if known or isinstance(error, EXPECTED):
        _say(str(error) or type(error).__name__)
    else:
        hint = "" if debug else f" ({DEBUG_FLAG} shows the traceback)"
        _say(f"unexpected {type(error).__name__}: {error}{hint}")
    return USAGE if isinstance(error, ValueError) and not known else FAILED


def _interrupted() -> int:
    _say("interrupted")
    return INTERRUPTED


def _say(message: str) -> None:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
