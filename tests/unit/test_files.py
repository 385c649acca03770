"""Files: JSON, and outputs that are written whole or not at all; what messages quote."""

import errno

import pytest

from openclip_superclip.environment import require
from openclip_superclip.errors import InputError, listed, reason
from openclip_superclip.files import NotWritten, read_json, whole_output


def test_read_json_returns_the_object(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("content", [None, "", "{", "[1]", b"\xff"])
def test_a_file_without_a_json_object_is_an_error_that_names_it_or_the_default(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read_json(path, {"b": 2}) == {"b": 2}
    with pytest.raises(InputError, match=r"^--data: .*a\.json cannot be read \(.*\): remove it$") as error:
        read_json(path, flag="--data", advice="remove it")
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    require("--serve", "serve", "json", "torch")
    with pytest.raises(InputError) as error:
        require("--serve", "serve", "json", "no_such_package")
    assert str(error.value) == (
        "--serve needs no_such_package, which is not installed: install the extra [serve], or "
        "pip install json no-such-package"
    )


def test_an_error_is_quoted_in_one_line():
    assert reason(ValueError("a\n b")) == "a b"
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_message_lists_the_first_names_and_the_number_of_the_others():
    assert listed(["a", 2]) == "a, 2"
    assert listed(range(5000), most=2) == "0, 1, 4,998 more"
    assert listed([]) == ""


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
        fails_with(OSError(errno.EROFS, "Read-only file system")),
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
