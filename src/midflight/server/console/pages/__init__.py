"""The pages, one file a subject. Each has a ``router``."""
