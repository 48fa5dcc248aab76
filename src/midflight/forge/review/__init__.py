"""Review: what no tool can prove about a fix, and what a person must know before putting a name to it."""
