"""Reads binaries (ELF; PE and COFF later) behind one model: identity, segments, sections, symbols, relocations, unwind
information. Knows nothing of processes. Standard library alone."""
