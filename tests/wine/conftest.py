"""What is common to the tests that run inside a Windows Python."""

from __future__ import annotations

import sys

# They call the Windows API: elsewhere there is nothing to collect. `make test-wine` fails where Wine is absent.
collect_ignore_glob = [] if sys.platform == "win32" else ["test_*.py"]
