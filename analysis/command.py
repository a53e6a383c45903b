"""Run a script from the shell: flags, one-sentence errors, exit status (0 done, 1 no usable sample, 2 usage error)."""

from __future__ import annotations

import errno
import json
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import tyro
from tyro._errors import InstantiationFailure, on_parse_error

from analysis.files import OutputError
from analysis.processes import ProcessLost
from analysis.report import NAME as PAGE
from analysis.report import write_report
from analysis.resume import other_versions
from analysis.runs import SETTINGS, SUMMARY, RunFolder

NOTHING_USABLE, WRONG_USE = 1, 2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler's preemption, a closed terminal


class Interrupted(KeyboardInterrupt):
    """One of SIGNALS; `status` is the exit status of a process that it ended."""

    def __init__(self, number: int):
        super().__init__(number)
        self.status = 128 + number


def run(main: Callable, config: type, description: str) -> None:
    """Parse the flags of a script's `Config`, call `main(config)`, and exit with the status that it returns.

    A result that cannot be written (disk full), the loss of another process and SIGNALS end the run with one sentence;
    stored results stay. A warning is one line.
    """
    settings = parse(config, description)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, interrupt)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where, **more: print(f"warning: {message}", file=sys.stderr)
        try:
            sys.exit(main(settings))
        except (OutputError, ProcessLost) as error:
            sys.exit(stop(str(error), NOTHING_USABLE))
        except Interrupted as error:
            sys.exit(stop("interrupted; start the same command again to go on", error.status))


def interrupt(number: int, frame) -> None:
    """Handler of SIGNALS. Raises Interrupted; a second signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise Interrupted(number)


def parse(config: type, description: str = "", args: Sequence[str] | None = None):
    """A `Config` from flags (default: those of the command line). The fields of its groups are flags without a prefix.

    A ValueError of `__post_init__` is a usage error, printed as one sentence instead of in tyro's box.
    """

    def refuse(event) -> None:
        if isinstance(event, InstantiationFailure) and event.argument is None:
            raise ValueError(event.message)

    with setting_up(), on_parse_error(refuse):
        return tyro.cli(config, args=args, description=description, config=(tyro.conf.OmitArgPrefixes,))


@contextmanager
def setting_up() -> Iterator[None]:
    """Errors raised in this block are usage errors (exit status 2), except a full disk (1)."""
    try:
        yield
    except OutputError:
        raise
    except (ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        sys.exit(stop(str(error), NOTHING_USABLE if full else WRONG_USE))


def conclude(run: RunFolder) -> int:
    """Write the page of a finished run, print its outcome and return its exit status."""
    page = write_report(run.folder)
    print(f"{run.done} of {run.done + run.skipped.total()} samples done; results in {run.folder}, to look at in {page}")
    if run.skipped:
        print(f"skipped: {counted(run.skipped)}")
    return 0 if run.done else NOTHING_USABLE


def conclude_finished(folder: Path) -> int:
    """Print that `folder` holds this run already; write its page if it is missing. Returns the exit status."""
    page = folder / PAGE
    if not page.is_file():
        write_report(folder)
    if versions := other_versions(json.loads((folder / SETTINGS).read_bytes())):
        print(f"note: computed with {versions}; pass another --out-dir to compute it again", file=sys.stderr)
    print(f"finished before, nothing is computed again: {folder}, to look at in {page}")
    return 0 if json.loads((folder / SUMMARY).read_bytes())["n"] else NOTHING_USABLE


def print_left_out(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Print one line with the counts of skipped input, by kind and reason; no line for complete input."""
    parts = [f"{kind}: {counted(reasons)}" for kind, reasons in counts.items() if reasons]
    if parts:
        print(f"left out of {'; of '.join(parts)}")


def counted(reasons: Mapping[str, int]) -> str:
    """Reasons with their counts, in falling order of count."""
    return ", ".join(f"{reason} ({count})" for reason, count in Counter(reasons).most_common())


def stop(sentence: str, status: int) -> int:
    """Print the reason why the run ends; return the exit status."""
    print(f"error: {sentence}", file=sys.stderr)
    return status
