"""Check-ins: who speaks, what is new of it, what the device gets, and how often it should come."""
