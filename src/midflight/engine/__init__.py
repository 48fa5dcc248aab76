"""Puts hotpatches into processes and takes them out: plan, link, stack check, transaction, ledger, integrity. OS-neutral:
everything that touches a process goes through ``midflight.process``. Standard library alone."""
