"""Configurations, models, layers and losses. Flat, because these files are copied into every Hub repository."""
