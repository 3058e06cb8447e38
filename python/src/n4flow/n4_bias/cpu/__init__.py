"""The compiled CPU backend of N4. It is reached through `engine`."""
