"""Where a device's thread works, and for whom."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from midflight.agent.fleet.enrollment import Enrolled
from midflight.agent.fleet.settings import ServerSettings
from midflight.agent.settings import Settings
from midflight.patch.signature import PublicKey
from midflight.trust.pinning import Timeouts


@dataclass(frozen=True, slots=True)
class Place:
    """See the module."""

    state: Path
    """The agent's folder of state."""
    enrolled: Enrolled
    settings: Settings
    server: ServerSettings
    trusted: tuple[PublicKey, ...] = ()
    """Keys of this machine, that may have signed hotpatches beside those that the repository names."""
    timeouts: Timeouts | None = None
    root: Path = Path("/")
    """Where the system is installed, as dpkg and rpm see it."""
