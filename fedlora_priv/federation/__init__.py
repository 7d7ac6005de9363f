"""The federation: what a client does in a round, what the server does, and the loop between them.

Client and server exchange bytes only (`wire`); an engine moves those bytes and nothing else. The same code
therefore drives one process and many machines.
"""
