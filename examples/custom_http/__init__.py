"""A federation of plain vectors behind an ASGI framework, over HTTP."""
