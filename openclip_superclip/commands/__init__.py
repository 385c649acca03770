"""One module a command of `superclip`; each has `main(argv)`."""
