"""``midflight server`` where only the engine was installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_without_the_packages_of_the_server_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['sqlalchemy'] = None; sys.modules['alembic'] = None; sys.modules['orjson'] = None\n"
        "from midflight.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "server", "init", str(tmp_path / "server")], capture_output=True, text=True
    )
    assert done.returncode == 2 and "pip install 'midflight[server]'" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "server").exists()
