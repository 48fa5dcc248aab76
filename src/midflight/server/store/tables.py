"""Every module that defines tables: importing this one makes ``Base.metadata`` complete (one line for each module)."""

from midflight.server.store import events, meta

ALL = (events, meta)
