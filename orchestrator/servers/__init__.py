"""Servers that somebody else runs: where they are, whether they are well, and how requests look to them."""
