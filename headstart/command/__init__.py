"""The command line: configuration, printing, and the commands that the programs register."""
