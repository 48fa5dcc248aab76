"""Background work: each function takes (session, now), can be stopped at any moment and started again, and never does
a step twice."""
