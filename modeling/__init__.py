"""Configurations, models, layers and losses. Flat, because these files are copied into every Hub repository."""

from triptych import auto_classes


# Whoever imports a model by its file expects the Auto classes to know it, too.
auto_classes.register()
