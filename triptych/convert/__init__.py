"""Foreign checkpoint layouts, one file each."""
