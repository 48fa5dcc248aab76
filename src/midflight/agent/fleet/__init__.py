"""The agent's side of the fleet: a device that has a server does what the server signed and offline keys bear out.

enrollment.py   becoming a device of a server; who it is, kept on disk
channel.py      the conversation: check-ins, renewal, the pinned connection; pace.py how often
contents.py     content: metadata, downloads, the files that are kept
survey.py       what runs here: images, packages (packages.py), hotpatches in memory; facts.py the machine,
                 winfacts.py one of Windows
eligibility.py  whether this device can take a hotpatch; decisions.py what is to be done now. Both pure.
staging.py      baselines: laid ready, swapped in, taken back; deb.py packages; restarts.py deadlines and warnings
moments.py      what time it is, also when somebody sets the clock
records.py      what must survive: orders in force, what is staged, outcomes not yet heard by the server
report.py       what the server is told
sync.py         the thread that does all of it; source.py hands its orders to the agent's loop
"""

FOLDER = "server"
"""Below the state of the agent: who this device is to its server. Here, so that an agent without one loads no TUF."""
