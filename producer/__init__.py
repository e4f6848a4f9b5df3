"""The programs that put jobs in: the command line, dataset runs, the embedded server."""
