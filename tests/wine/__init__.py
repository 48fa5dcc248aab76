"""Tests that run in a Windows Python under Wine, and what is built for them on Linux."""

CORE_BASE = 0x260000000
"""Where core.dll is linked to be; the host program can take that place, so that it is relocated."""
