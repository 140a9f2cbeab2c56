"""How one model lies over a gang of ranks."""
