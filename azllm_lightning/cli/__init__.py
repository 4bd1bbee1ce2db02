"""The command line: values as people type them, Hydra, messages in two languages, exit codes."""
