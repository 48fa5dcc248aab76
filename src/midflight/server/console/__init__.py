"""The administrator's console: pages made on the server, which do nothing that the API does not do (docs/adr/0085)."""
