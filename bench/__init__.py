"""Load, an instant engine, and peers to compare with: what ``orchestrator bench`` runs."""
