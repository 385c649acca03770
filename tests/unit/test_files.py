import pytest

from openclip_superclip.environment import require
from openclip_superclip.errors import InputError, listed, reason
from openclip_superclip.files import read_json


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
