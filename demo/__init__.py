"""The demonstration: a real server loses a real vulnerability under load, without a restart. ``make demo``."""
