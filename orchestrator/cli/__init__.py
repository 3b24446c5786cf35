"""The command line. Each command imports what it needs when it runs, so that all of them start fast."""

from __future__ import annotations

import signal
import sys
from types import FrameType

FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130


def main() -> None:
    """Run one command; ends the process with 0 fine, 1 failed, 2 wrong usage or configuration, 130 interrupted."""
    from orchestrator.cli.commands import app
    from orchestrator.errors import ConfigError, OrchestratorError

    # Typer would say "Aborted!" and end with 1. The service has handlers of its own.
    signal.signal(signal.SIGINT, _interrupted)
    try:
        app()
    except ConfigError as error:
        sys.exit(_say(error, WRONG_USAGE))
    except OrchestratorError as error:
        sys.exit(_say(error, FAILED))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has what it wanted
        sys.exit(0)


def _interrupted(number: int, frame: FrameType | None) -> None:
    sys.exit(INTERRUPTED)


def _say(error: Exception, code: int) -> int:
    print(f"orchestrator: {error}", file=sys.stderr)
    return code
