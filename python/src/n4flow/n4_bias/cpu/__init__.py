"""The compiled CPU backend of N4; `engine` calls it."""
