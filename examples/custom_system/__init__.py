"""A federation of plain vectors over TCP, in separate processes."""
