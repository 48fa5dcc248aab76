"""The rules of the fleet: frozen data and pure functions.

No input or output, no clock (``now`` is an argument, always with a time zone), no database. The server calls them for
every check-in, and ``python -m bench simulation`` drives a year of 100,000 devices through the very same functions.
"""
