"""The control plane of a fleet: rules (domain), storage, API, background work, outputs, access and console."""
