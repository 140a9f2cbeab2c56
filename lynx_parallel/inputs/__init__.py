"""What to render: manifest, pipeline file and command-line options as frozen values. Imports no torch."""
