"""Launchers start, observe and stop attempts on something that runs them."""
