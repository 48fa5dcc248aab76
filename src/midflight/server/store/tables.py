"""Every module that defines tables: importing this one makes ``Base.metadata`` complete (one line for each module)."""

from midflight.server.access import tables as access
from midflight.server.outputs import tables as outputs
from midflight.server.store import catalogue, devices, events, meta, policies, tallies

ALL = (access, catalogue, devices, events, meta, outputs, policies, tallies)
