"""Embedders: what turns text into vectors. See `orchestrator.documents.ports.Embedder`."""
