"""A seeded simulator that drives the real `decide` and `fleet` against a world that misbehaves."""
