"""Speed and memory, measured on this machine; each module is one command."""
