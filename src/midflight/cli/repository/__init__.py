"""The subcommands of ``midflight repo``: one file each, with HELP, add_arguments and run."""
