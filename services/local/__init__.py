"""The embedded stack: everything on one machine, kept alive as a group."""
