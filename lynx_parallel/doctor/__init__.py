"""``lynx-render doctor``: checks whether this machine can render."""
