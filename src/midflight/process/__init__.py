"""Live processes behind one Protocol: maps, read, write, allocate, threads, stop, registers, call. Standard library
alone."""
