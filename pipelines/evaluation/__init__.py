"""How well faces are restored: models on pair datasets, any method's pictures on disk, and the named test sets."""
