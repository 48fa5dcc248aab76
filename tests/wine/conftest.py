"""Which tests run in the Windows Python, and which on Linux, where a server is."""

from __future__ import annotations

import sys

# Those in the Windows Python call its API: elsewhere there is nothing to collect. `make test-wine` runs both kinds, and
# fails where Wine is absent.
collect_ignore_glob = ["test_fleet.py"] if sys.platform == "win32" else ["test_[!f]*.py", "test_forged.py"]
"""Names of files."""
