"""Processors. Flat, because these files are copied into every Hub repository."""
