"""``python -m tersor.cli``."""

from tersor.cli import main

if __name__ == "__main__":
    main()
