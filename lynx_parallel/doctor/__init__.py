"""What ``lynx-render doctor`` finds out about this machine."""
