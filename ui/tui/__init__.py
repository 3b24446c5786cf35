"""Terminal screens: ``orchestrator top`` and ``orchestrator chat``. They know a service by Protocols alone."""
