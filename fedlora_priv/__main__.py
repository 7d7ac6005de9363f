"""``python -m fedlora_priv`` is ``fedlora``."""

from fedlora_priv.cli import main

if __name__ == "__main__":
    main()
