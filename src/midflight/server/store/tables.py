"""Every module that defines tables: importing this one makes ``Base.metadata`` complete (one line for each module)."""

from midflight.server.store import catalogue, devices, events, meta, policies

ALL = (catalogue, devices, events, meta, policies)
