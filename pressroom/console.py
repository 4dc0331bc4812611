"""What a person sees: results, log lines, progress, errors, and never a secret.

Every command starts through `entry`. Results go to standard output by `say`, everything that
tells how the work is going goes to standard error. Knows nothing of recipes or runs.
"""

import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

log = logging.getLogger("pressroom")

# Notes of libraries to each other's developers, some written when they are imported.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it sets its logger's level when imported
warnings.filterwarnings("ignore", category=FutureWarning)

_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$")
_SECRET_SHAPE = re.compile(r"(?<=access_key=)[^&\s\"']+|\bhf_[A-Za-z0-9]{16,}|(?<=://)[^/@\s]+@")
_PLAIN_LINE_SECONDS = 10.0
_GPU_FULL = (
    "the GPU's memory is full. In training batch.micro_batch_size and sequence_length take it, "
    "memory.activation_checkpointing: full saves it, and parallel.strategy: fsdp divides it over "
    "GPUs; in evaluation evaluation.micro_batch_size takes it, in generation --batch-size"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


TOLD = "PRESSROOM_TOLD"
"""Environment: a file into which a command writes what was wrong, so that the command which started
it can tell a message from a process that was killed."""


class UserError(Exception):
    """A mistake that its reader can mend: shown as it stands, without a traceback."""


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return bool(_SECRET_NAME.search(name))


def hide(text: str, secret: str, mark: str) -> str:
    """Replace a secret by a mark, also where it is written as in URLs or in JSON."""
    letters = (rf"(?:\\?{re.escape(c)}|%{ord(c):02x}|\\u{ord(c):04x})" for c in secret)
    return re.sub("".join(letters), mark.replace("\\", r"\\"), text, flags=re.IGNORECASE)


def redact(text: str) -> str:
    """Replace secrets: values of environment variables named like one, keys in URLs, hub tokens."""
    for name, value in os.environ.items():
        if len(value) >= 8 and is_secret_name(name):
            text = hide(text, value, f"<{name}>")
    return _SECRET_SHAPE.sub("<redacted>", text)


def harmless(text: str) -> str:
    """Show characters that would drive the terminal by their codes: names come from files."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return harmless(redact(super().format(record)))


def set_up_logging(level: int = logging.INFO) -> None:
    """Send log lines, redacted, to standard error. Called once, by the process that runs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RedactingFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(level)


def say(text: str = "", end: str = "\n") -> None:
    """Write a result for a person, or the next program, to standard output."""
    sys.stdout.write(redact(text) + end)
    sys.stdout.flush()


def entry(command: Callable[..., object], name: str | None = None) -> NoReturn:
    """Run a click command; end the process with 0, 2 for a user's mistake, 130 when interrupted.

    `name` is what it is called in its own messages.

    What else is raised is our own mistake: its traceback is shown, without secrets.
    """
    import click

    set_up_logging()
    try:
        if isinstance(command, click.Command):
            command(standalone_mode=False, prog_name=name)
        else:
            command()
    except UserError as error:
        _end(f"error: {error}", 2)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        message = error.format_message()
        is_key = isinstance(error, click.NoSuchOption) and {"_", "."} & set(error.option_name)
        if is_key or (isinstance(error, click.NoSuchOption) and not error.possibilities):
            message = message.partition(" Did you mean")[0]
            message += " A recipe's keys are given without dashes: section.key=value"
        _end((context.get_usage() + "\n" if context else "") + f"error: {message}", 2)
    except (KeyboardInterrupt, click.Abort):
        _end("interrupted", 130)
    except BrokenPipeError:
        # The reader has gone, as `| head` does; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _end(f"error: {error}", 1)  # a disk, a permission: it names the file
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which the hall does not know
            _end(f"error: {_GPU_FULL} ({str(error).splitlines()[0]})", 1)
        _end(traceback.format_exc(), 1)
    sys.exit(0)


def _end(message: str, code: int) -> NoReturn:
    last_words(message)
    sys.exit(code)


def last_words(message: str) -> None:
    """Say why this process ends, to its reader and to the command that started it."""
    shown = harmless(redact(message)).rstrip()
    sys.stderr.write(shown + "\n")
    sys.stderr.flush()
    if told := os.environ.get(TOLD):
        with suppress(FileExistsError), Path(told).open("x", encoding="utf-8") as file:
            file.write(shown.removeprefix("error: ") + "\n")  # of several ranks, the first


PICTURES = (".png", ".svg", ".pdf")


def require_picture(option: str, path: Path) -> None:
    """See that a picture can be drawn, before anything is computed for it.

    Raises:
        UserError: Its name ends in no kind of picture.
    """
    if path.suffix not in PICTURES:
        raise UserError(f"{option} {path}: must end in one of {', '.join(PICTURES)}")


def human_seconds(seconds: float) -> str:
    """`75.2` -> `1:15`, `3725` -> `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Progress of long work: a bar with time left on a terminal, plain lines in a file.

    Args:
        what: What is going on, in a word or two.
        total: How many units of work there are.
        unit: The name of one unit.
        done: Units that were done before, by an interrupted run.
    """

    def __init__(self, what: str, total: int, unit: str, *, done: int = 0) -> None:
        self.what, self.total, self.unit = what, total, unit
        self._first = self._done = done
        self._start = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def expect(self, total: int) -> None:
        """Correct how many units of work there are: some work shows its size as it is done."""
        self.total = total
        if self._bar is not None:
            self._bar.total = total

    def advance(self, units: int = 1, **figures: str) -> None:
        """Count finished units; `figures` (loss="3.21") are shown beside them."""
        self._done += units
        if self._bar is not None:
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(units)
            return
        now = time.monotonic()
        if now - self._last_line < _PLAIN_LINE_SECONDS and self._done < self.total:
            return
        self._last_line = now
        each = (now - self._start) / max(self._done - self._first, 1)
        left = human_seconds(each * (self.total - self._done))
        shown = "".join(f"  {name} {value}" for name, value in figures.items())
        log.info(
            "%s %d/%d %s%s  %s left", self.what, self._done, self.total, self.unit, shown, left
        )
