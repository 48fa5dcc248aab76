"""Midflight repairs programs while they run: signed hotpatches, applied, proven and reverted in live processes."""

__version__ = "0.1.0"
