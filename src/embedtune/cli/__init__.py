"""The command line; each command is a module, and imports what is slow to import only when it runs."""
