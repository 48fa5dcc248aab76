"""Makes hotpatches: capture the builds, difference pre and post, match pre against run, refuse or link the payload."""
