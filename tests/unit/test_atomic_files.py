"""Files written whole or not at all: which errors are those of the output."""

import errno

import pytest

from openclip_superclip.errors import InputError
from openclip_superclip.files import NotWritten, whole_output


def test_an_output_is_blamed_for_its_own_errors_and_for_no_others(tmp_path):
    out = tmp_path / "out"

    def write(raises):
        with whole_output(out, overwrite=True) as part:
            part.mkdir()
            raises(part)

    def fails_with(error):
        def fail(_):
            raise error

        return fail

    for ours in (
        fails_with(OSError(errno.ENOSPC, "No space left on device")), fails_with(NotWritten("the disk is full")),
        lambda part: (part / "no folder" / "file").write_bytes(b""),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"--out: {out} cannot be written"):
            write(ours)
    for of_others in (
        lambda _: (tmp_path / "picture.png").read_bytes(), fails_with(OSError(errno.EIO, "Input/output error")),
        fails_with(FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0.")),
    ):  # fmt: skip
        with pytest.raises(OSError):
            write(of_others)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_folder", [True, False])
def test_of_two_that_write_one_new_output_at_once_the_second_is_refused(is_folder, tmp_path):
    out = tmp_path / "out"

    def write(path, text):
        (path.mkdir(), (path / "file").write_text(text)) if is_folder else path.write_text(text)

    with pytest.raises(InputError, match=f"--out: {out} cannot be written"), whole_output(out, False) as part:
        write(part, "second")
        write(out, "first")  # by another process meanwhile
    assert (out / "file" if is_folder else out).read_text() == "first"
    assert list(tmp_path.iterdir()) == [out]
