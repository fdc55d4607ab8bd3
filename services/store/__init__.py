"""The database: tables, migrations and the one class that reads and writes them."""
