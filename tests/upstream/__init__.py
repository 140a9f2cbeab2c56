"""A plain, slow, straight-line Lynx: it imports nothing of the package, and is held to the recordings."""
