"""Readings of a trained network: each module measures one thing and draws it."""
