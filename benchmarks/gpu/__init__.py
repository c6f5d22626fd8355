"""Everything that a machine with a GPU is asked to show, in one command: `make gpu`."""
