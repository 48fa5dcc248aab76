"""stub"""
from __future__ import annotations
from pathlib import Path
from midflight.forge.model import Finding
def has_types(file: Path) -> bool: return True
def compare_layouts(pre: Path, post: Path, path: Path) -> tuple[Finding, ...]: return ()
def signatures(file: Path) -> dict[str, str]: return {}
