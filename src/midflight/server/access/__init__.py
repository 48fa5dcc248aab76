"""Who may do what on the server: accounts, login, roles, API tokens, two-person approval and the audit log."""
