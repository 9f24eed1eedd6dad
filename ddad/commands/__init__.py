"""The commands: each file adds its own to the parser, calls the package, and prints."""
