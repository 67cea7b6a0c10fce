"""``python -m mobile_o_export``."""

from mobile_o_export.cli.main import main

if __name__ == "__main__":
    main()
