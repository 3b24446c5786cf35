"""Engines as containers of one or several Docker hosts."""
