"""From one experiment to many machines: keys, certificates, each party's folder, and the checks before it starts.

`keys` makes what is a node's own and never leaves it, `certificates` what TLS needs, `bundle` the folders and start
scripts, `check` the one clear line on the side that can act. Everything cryptographic is `cryptography`'s.
"""
