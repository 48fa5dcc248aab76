"""Run-pre matching: proves that what runs is what pre says, and reads addresses off the match."""
