"""What the server remembers: tables, migrations and queries, on SQLite and on PostgreSQL alike."""
