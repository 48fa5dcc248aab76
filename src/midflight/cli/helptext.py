"""How the text of help pages is laid out."""

from __future__ import annotations

import textwrap


def filled(text: str) -> str:
    """Paragraphs filled to 79 columns; those that are laid out by hand (several spaces in a row) stay."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph if "  " in paragraph else textwrap.fill(paragraph, 79, break_on_hyphens=False)
        for paragraph in paragraphs
    )
