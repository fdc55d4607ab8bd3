"""Data sets, their transforms and the sampler."""
