"""Trust: the keys that sign hotpatches, and whom to believe."""
