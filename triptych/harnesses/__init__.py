"""This package's models inside other programs that evaluate."""
