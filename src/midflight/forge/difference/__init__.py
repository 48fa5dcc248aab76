"""Pre-post differencing: what a fix changes in the objects, and what of that must be refused."""
