"""One module per command of `superclip`; each has `main(argv)`, which runs it and returns the
exit code."""
