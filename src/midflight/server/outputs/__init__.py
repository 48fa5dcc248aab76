"""What the server tells others: webhooks, metrics, security events, compliance tokens, reports, OVAL and VEX."""
