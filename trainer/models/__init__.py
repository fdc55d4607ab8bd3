"""The networks as torch modules, built from the descriptions in resforge/networks.py."""
