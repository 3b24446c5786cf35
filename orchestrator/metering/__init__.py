"""What each request is let do and what it took: limits of keys and models, and usage."""
