"""Arrays on host and device, threads, compiled code and memory: tools that every computation uses.

Imports nothing of the package but `errors`.
"""
