"""Capture: the user's own build, run without and with the fix under a compiler wrapper."""
