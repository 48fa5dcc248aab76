"""Linking: what goes into the payload, where each reference leads, and what the engine must still fill in."""
