"""The card template, and one card per published preset."""
