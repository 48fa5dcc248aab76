"""Build hook of hatch: a wheel carries what the console's pages load, so that nothing is fetched at run time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ConsoleAssets(BuildHookInterface[Any]):
    """Fetches the console's assets before a wheel is built. An editable installation needs none."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatch before the build."""
        if version != "editable":
            script = Path(self.root) / "scripts" / "console_assets.py"
            if subprocess.run([sys.executable, str(script)]).returncode:
                raise RuntimeError("the console's assets could not be made; see above")
