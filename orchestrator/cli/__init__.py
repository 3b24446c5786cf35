"""The command line. Each command imports what it needs when it runs, so that all of them start fast."""

from __future__ import annotations

import sys

FAILED = 1
WRONG_USAGE = 2
INTERRUPTED = 130


def main() -> None:
    """Run one command; ends the process with 0 fine, 1 failed, 2 wrong usage or configuration."""
    from orchestrator.cli.commands import app
    from orchestrator.errors import ConfigError, OrchestratorError

    try:
        app()
    except ConfigError as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        sys.exit(WRONG_USAGE)
    except OrchestratorError as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has what it wanted
        sys.exit(0)
