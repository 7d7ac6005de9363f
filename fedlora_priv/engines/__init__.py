"""Engines move bytes between the server and the clients, and do nothing else.

`base.Engine` is the whole interface; `local` runs every client in this process.
"""
