"""The device daemon: keeps every process of this machine patched with the hotpatches that are ordered, watches what
that does to them, and takes out again what hurts. Where orders come from is one Protocol; a folder is the simplest
source.

    agent       the loop: events, looks, applying, timers
    orders      what is ordered, and what that means for a process (pure)
    folder      orders from a folder of hotpatch files
    looks       when to look at a process again (pure)
    patcher     puts into one process what is wanted there
    tracked     the processes that carry something of ours
    health      what counts as a crash, and which checks are due (pure)
    probes      runs the commands that tell whether the machine is well
    state       what must survive a restart of the agent: SQLite
    clocks      time that no clock setting changes
    settings    agent.toml
    notices     what is told to people: standard error, a log file, the event log of Windows
    systemd     the service manager of Linux: readiness, watchdog, the unit
    winservice  the one of Windows: the service's entry point, control, installation
    eventlog    the event log of Windows
"""
