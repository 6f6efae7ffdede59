"""The subcommands of `fedmtl`, one file each, loaded only when called."""
