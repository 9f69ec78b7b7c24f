"""``python -m ddim``, for launchers that want a module."""

from .cli.app import main

if __name__ == "__main__":
    main()
