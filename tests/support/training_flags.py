"""A pytest plugin for OpenCLIP's own tests: their trainings get the flags in
TRAINING_FLAGS, and one that does not train fails."""

import os

import open_clip_train.main

main = open_clip_train.main.main


def main_with_flags(argv):
    code = main([*argv, *os.environ["TRAINING_FLAGS"].split()])
    assert code is None, "OpenCLIP did not train"  # its tests do not look


open_clip_train.main.main = main_with_flags
