"""The subcommands of ``midflight server``: one file each, with HELP, add_arguments and run."""
