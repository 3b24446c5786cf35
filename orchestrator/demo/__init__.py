"""``orchestrator demo``: everything a first run needs, prepared in a cache folder of its own."""
